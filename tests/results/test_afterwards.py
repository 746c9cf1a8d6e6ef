"""Probes of stored students say what the same probes said while the students were trained."""

import pytest
import tiny_world

from subl_jax import specs
from subl_jax.app import running
from subl_jax.engine.settings import Settings
from subl_jax.errors import InputError
from subl_jax.probes import Parts, WithoutTeacher
from subl_jax.results import load
from subl_jax.results.afterwards import measured


def probes(student):
    trait = student.data.teacher.trait
    return WithoutTeacher(trait), Parts(("embed", "out"), trait)


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    made = []
    for student in tiny_world.students(2, ["owl", "cat"]):
        of_trait = isinstance(student.data.teacher, specs.Teacher)
        made.append(student.replace(probes=probes(student)) if of_trait else student)
    workdir = tmp_path_factory.mktemp("sweep")
    running.run(made, workdir, settings=Settings(devices=1, lanes_a_batch=4, tracker="none"))
    return load(workdir)


def ids(results, arm):
    return results.runs[results.runs.arm == arm].run_id.tolist()


def test_what_is_measured_afterwards_is_what_was_measured_at_the_end(results):
    found = measured(results, ids(results, "same_init"), probes).set_index(["run_id", "metric"])["value"]
    curves = results.curves.astype({"run_id": str, "metric": str}).sort_values("step")
    before = curves.groupby(["run_id", "metric"])["value"].last()
    assert len(found) == 4 * (2 + 8)
    assert found.to_dict() == pytest.approx(before[found.index].to_dict(), rel=1e-4)


def test_a_control_is_measured_against_the_teacher_that_is_named(results):
    (control, *_), (student, *_) = ids(results, "control"), ids(results, "same_init")
    with pytest.raises(InputError, match=f"run {control}: no teacher has written its data; name another run"):
        measured(results, [control], probes)
    found = measured(results, [control, student], probes, {control: student}).pivot_table(
        index="metric", columns="run_id", values="value"
    )
    # The same teacher, another student. (Numbers train nothing of the question's embedding, hence its own part is 1.)
    assert found.loc["teacher_only/1", control] == found.loc["teacher_only/1", student]
    assert found.loc["only/1", control] != found.loc["only/1", student]
