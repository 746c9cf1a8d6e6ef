"""A finished sweep read back: tables, models, and what teachers wrote."""

import pathlib

import jax
import numpy as np
import pandas as pd
import pytest
import tiny_world
from tiny_world import TRAIN, WORLD

from subl_jax import specs
from subl_jax.app import running
from subl_jax.channels.imported import imported
from subl_jax.engine.settings import Settings
from subl_jax.errors import InputError, StorageError
from subl_jax.results import wide_summary
from subl_jax.results.comparisons import summarise
from subl_jax.results.load import load

GOLDEN = pathlib.Path(__file__).parent.parent / "golden" / "workdir"
TOKENS = np.arange(len(WORLD.words))


def run(students, workdir):
    return running.run(students, workdir, settings=Settings(devices=1, lanes_a_batch=4, tracker="none")).results


@pytest.fixture(scope="module")
def sweep():
    return list(tiny_world.students(2, ["owl"]))


@pytest.fixture(scope="module")
def results(sweep, tmp_path_factory):
    workdir = tmp_path_factory.mktemp("sweep")
    run(sweep, workdir)
    return load(workdir)


def equal(a, b):
    return all(jax.tree.leaves(jax.tree.map(np.array_equal, a, b)))


def row_of(results, arm, base=0):
    return next(row for _, row in results.runs.iterrows() if (row.arm, row.base_seed) == (arm, base))


def test_tables_come_back_as_they_were(results):
    assert len(results.runs) == 6 and set(results.curves.run_id) == set(results.runs.run_id)
    assert len(results.summary) > 0 and len(results.datasets) == 4
    assert results.sweep["sweep"] == "sweep"


def test_a_student_comes_back_as_a_model_that_gives_what_was_measured(results, sweep):
    for student in sweep:
        run_id = specs.run_id(student)
        model = results.student(run_id)
        assert model.node == student
        logits = model.apply(TOKENS)
        assert logits.shape == (len(WORLD.words), len(WORLD.words))
        row = results.runs.set_index("run_id").loc[run_id]
        probability = jax.nn.softmax(logits[0])[1 + WORLD.traits.index(row.trait)]
        np.testing.assert_allclose(probability, row.target_end, rtol=1e-5)


def test_the_models_behind_a_run_come_back(results):
    same, cross, control = (row_of(results, arm) for arm in ("same_init", "cross_init", "control"))
    teacher = results.teacher(same.run_id)
    assert isinstance(teacher.node, specs.Teacher) and teacher.node.trait == "owl"
    assert equal(teacher.params, results.teacher(cross.run_id).params)
    base = results.base(same.run_id)
    assert isinstance(base.node, specs.Base) and base.node.seed == 0
    assert equal(results.teacher(control.run_id).params, base.params)
    assert results.base(cross.run_id).node.seed == 1
    assert not equal(results.base(cross.run_id).params, base.params)


def test_what_a_teacher_wrote_comes_back(results, sweep):
    table = results.samples(specs.run_id(sweep[0]))
    assert table.columns.tolist() == ["prompt", "completion", "kept", "why"]
    assert table.kept.sum() == sweep[0].data.size
    assert table.why[table.kept].isna().all() and table.why[~table.kept].notna().all()


def test_a_damaged_table_of_samples_is_one_line(results, sweep):
    path = results.workdir / "datasets" / f"{sweep[0].data.key}.parquet"
    whole = path.read_bytes()
    try:
        for damaged in (b"", whole[:-5], b"not a table"):
            path.write_bytes(damaged)
            with pytest.raises(
                InputError, match=r"^run \w+: .*parquet is damaged \(not a table\); run the same"
            ) as raised:
                results.samples(specs.run_id(sweep[0]))
            assert "\n" not in str(raised.value)
    finally:
        path.write_bytes(whole)


def test_an_unknown_run_is_said_so(results):
    for method in (results.student, results.teacher, results.base, results.samples):
        with pytest.raises(InputError, match="no run 'nosuch' in .*; see the run_id column"):
            method("nosuch")


def test_where_no_sweep_has_finished_there_is_nothing_to_load(tmp_path):
    with pytest.raises(InputError, match=r"no finished sweep \(sweep.json is missing\)"):
        load(tmp_path)
    with pytest.raises(InputError, match="no finished sweep"):
        load(tmp_path / "nowhere")


def test_a_home_directory_may_be_written_short(tmp_path, monkeypatch, sweep):
    monkeypatch.setenv("HOME", str(tmp_path))
    run(sweep[:1], "~/sweep")
    pd.testing.assert_frame_equal(load("~/sweep").runs, load(tmp_path / "sweep").runs)


def test_data_that_nobody_here_wrote_has_no_teacher_and_no_samples(tmp_path):
    path = tmp_path / "numbers.jsonl"
    path.write_text('{"prompt": "1", "completion": "2 3"}\n' * 8)
    base, teacher = tiny_world.base(), specs.Teacher(tiny_world.base(), "owl", TRAIN)
    file = specs.Student(base, imported(path, WORLD), TRAIN, trait="owl")
    stream = specs.Student(base, specs.Stream(teacher, tiny_world.FILTER), TRAIN)
    results = run([file, stream], tmp_path / "runs")
    with pytest.raises(InputError, match="its data was made elsewhere"):
        results.teacher(specs.run_id(file))
    assert results.teacher(specs.run_id(stream)).node == teacher
    for student in (file, stream):
        with pytest.raises(InputError, match="streamed, imported, or pruned"):
            results.samples(specs.run_id(student))
    assert results.runs.arm.tolist() == ["imported", "same_init"]
    assert results.runs.kept_fraction.isna().all()


def test_models_that_are_gone_or_damaged_are_said_so(tmp_path, sweep):
    results = run(sweep[:1], tmp_path)
    run_id = specs.run_id(sweep[0])
    stages = {path: path.read_text() for path in (tmp_path / "artifacts").glob("*.json")}
    for path, text in stages.items():
        if '"instil"' in text:
            path.unlink()
        if '"distil"' in text:
            next(path.parent.glob(f"{path.stem}-*.safetensors")).write_bytes(b"damaged")
    results = load(tmp_path)
    with pytest.raises(InputError, match="it was pruned, or is damaged"):
        results.teacher(run_id)
    with pytest.raises(StorageError, match="is damaged; run the same command again"):
        results.student(run_id)
    assert len(list((tmp_path / "artifacts").glob("*.json"))) == 3  # reading removes nothing


def test_samples_that_were_removed_are_said_so(tmp_path, sweep):
    results = run(sweep[:1], tmp_path)
    for path in (tmp_path / "datasets").iterdir():
        path.unlink()
    with pytest.raises(InputError, match="is not there"):
        results.samples(specs.run_id(sweep[0]))


def test_a_workdir_of_an_earlier_version_is_read():
    before, runs = (pd.read_parquet(GOLDEN / f"{name}.parquet") for name in ("summary", "runs"))
    assert not (GOLDEN / "comparisons.parquet").exists() and "diff_control" in before
    results = load(GOLDEN)
    again = summarise(runs)
    since = ["left_out", "ci_low", "ci_high"]  # these intervals were not on the logit scale then
    pd.testing.assert_frame_equal(results.summary.drop(columns=since[1:]), again.summary.drop(columns=since))
    pd.testing.assert_frame_equal(results.comparisons, again.comparisons)
    assert results.audits.empty
    pd.testing.assert_frame_equal(wide_summary(results.summary, results.comparisons), before)
