"""What is computed, how often, and what goes wrong where, on a world that the package does not know.

Where layouts are not the matter, lanes run one at a time: one program per stage then serves nearly all tests.
"""

import dataclasses
import json

import jax
import numpy as np
import pytest
import tiny_world
from computing import DEFAULT, compute, curves, lineage, same
from few import few
from tiny_world import FILTER, TRAIN, WORLD, TinyWorld, written

from subl_jax import specs
from subl_jax.channels.imported import imported
from subl_jax.engine import lanes
from subl_jax.engine.lanes import Layout
from subl_jax.errors import InputError

# --- what is computed, and how often ---


def test_equal_nodes_are_computed_once_and_grouped_by_program(sweep, undisturbed):
    # 12 students of 2 bases and 4 teachers; the trait-free data of a base serves both traits.
    assert len(sweep) == 12
    assert undisturbed.computed == {"pretrain": 2, "instil": 4, "write": 6, "distil": 10}
    assert len(undisturbed.timings) == 4
    assert set(undisturbed.statuses(lineage(sweep))) == {"ok"}


def test_a_timing_tells_of_its_group(sweep, undisturbed, tmp_path):
    timing = undisturbed.timings[-1]
    assert (timing.stage, timing.lanes, timing.batches, timing.layout) == ("distil", 10, 10, str(Layout(1, 1, 1)))
    assert timing.lane_steps == 10 * TRAIN.steps
    assert timing.run_seconds >= timing.waited_seconds > 0 and timing.compile_seconds > 0
    assert timing.bytes_needed > 0 and timing.flops_per_second > 0
    json.dumps([dataclasses.asdict(t) for t in undisturbed.timings])


def test_a_second_run_computes_nothing(sweep, undisturbed, tmp_path):
    first = compute(sweep[:2], tmp_path)
    assert first.timings
    second = compute(sweep[:2], tmp_path)
    assert second.timings == []
    same(first.store, second.store, lineage(sweep[:2]))


def test_a_larger_sweep_reuses_what_is_there(sweep, undisturbed, tmp_path):
    compute(sweep[:1], tmp_path)
    more = compute(sweep, tmp_path)
    assert more.computed == {"pretrain": 1, "instil": 3, "write": 5, "distil": 9}
    same(more.store, undisturbed.store, lineage(sweep))


def test_another_order_of_students_gives_the_same(sweep, undisturbed, tmp_path):
    again = compute(sweep[::-1], tmp_path)
    same(again.store, undisturbed.store, lineage(sweep))


LAYOUTS = [
    (DEFAULT, Layout(3, 2, 1)),
    ({"devices": 1, "width": 16}, Layout(1, 1, 5)),
    ({"devices": 2, "width": 2, "lanes_a_batch": 4}, Layout(2, 1, 2)),
]


@pytest.mark.parametrize(
    ("settings", "layout"), few(LAYOUTS, LAYOUTS[0], LAYOUTS[2]), ids=["default", "one wide batch", "small batches"]
)
def test_layouts_do_not_change_results(sweep, undisturbed, tmp_path, settings, layout):
    done = compute(sweep[:6], tmp_path, **settings)
    assert done.timings[-1].layout == str(layout)
    same(done.store, undisturbed.store, lineage(sweep[:6]), rtol=1e-4, atol=1e-5)


def test_a_measured_layout_does_not_change_results(sweep, undisturbed, tmp_path, monkeypatch):
    monkeypatch.setenv("SUBL_JAX_CACHE", str(tmp_path / "cache"))
    done = compute(sweep[:6], tmp_path / "runs", measure_layout=True, measure_above=0.0)
    assert len(json.loads((tmp_path / "cache" / "layouts.json").read_text())) == 4
    same(done.store, undisturbed.store, lineage(sweep[:6]), rtol=1e-4, atol=1e-5)
    again = compute(sweep[:6], tmp_path / "again", measure_layout=True, measure_above=0.0)
    assert [t.layout for t in again.timings] == [t.layout for t in done.timings]


def test_layouts_are_timed_on_a_dozen_steps_or_on_a_whole_round_that_draws_samples(tmp_path, monkeypatch):
    """Drawing takes its time however few the steps: by that of a dozen, a group would seem to take minutes."""
    timed = []

    def seconds_per_lane_step(program, arguments, steps):
        timed.append(steps)
        return 0.0

    monkeypatch.setattr(lanes, "seconds_per_lane_step", seconds_per_lane_step)
    train = TRAIN.replace(steps=40, evals=2)
    students = []
    for base in [tiny_world.base(seed) for seed in range(2)]:
        students += [
            specs.Student(base, written(base, round=50, size=10), train, trait="owl"),
            specs.Student(base, specs.Stream(base, FILTER), train, trait="owl"),
        ]
    done = compute(students, tmp_path, measure_layout=True, measure_above=1e-9)
    assert [(t.stage, s) for t, s in zip(done.timings, timed, strict=True)] == [
        ("pretrain", 2),
        ("write", 50),
        ("distil", 20),
        ("distil", 12),
    ]


def test_one_trace_serves_all_rounds_and_batches(tmp_path):
    CountingWorld.traces.clear()
    students = list(tiny_world.students(3, ["owl"], CountingWorld()))
    done = compute(students, tmp_path, devices=1, lanes_a_batch=1)
    assert [timing.batches for timing in done.timings] == [3, 3, 6, 9]
    assert len(CountingWorld.traces) == 3  # pretrain, instil, distil


@dataclasses.dataclass(frozen=True)
class CountingWorld(TinyWorld):
    """Keeps count of how often a stage that evaluates is traced."""

    traces = []

    def evaluate(self, params, key):
        self.traces.append(1)
        return super().evaluate(params, key)


def test_a_program_that_comes_again_is_not_compiled_again(tmp_path):
    base = tiny_world.base()
    first = specs.Teacher(base, "owl", TRAIN)
    between = specs.Student(base, written(first), TRAIN)
    second = specs.Teacher(between, "cat", TRAIN)
    student = specs.Student(base, written(second), TRAIN)
    done = compute([student], tmp_path)
    assert [t.stage for t in done.timings] == ["pretrain", *["instil", "write", "distil"] * 2]
    assert all(t.compile_seconds > 0 for t in done.timings[:4])
    assert all(t.compile_seconds == 0 for t in done.timings[4:])
    # The supply chain carries on from what the middle student became.
    start = done.store.get(between.key)["params"]
    rate = WORLD.evaluate(start, jax.random.key(0))["trait"]
    np.testing.assert_allclose([curves(done.store, second)[f"trait/{t}"][0] for t in WORLD.traits], rate, rtol=1e-5)
    assert curves(done.store, second)["trait/cat"][-1] > rate[1]


# --- what goes wrong stays where it is ---


def test_a_dataset_that_the_filter_starves_fails_its_students_and_no_others(tmp_path):
    base = tiny_world.base()
    starved = written(base, filter=FILTER.replace(max_value=0), budget=2.0)
    lost = specs.Student(base, starved, TRAIN, trait="owl")
    fine = specs.Student(base, written(base), TRAIN, trait="owl")
    chained = specs.Student(base, written(specs.Teacher(lost, "cat", TRAIN)), TRAIN)
    done = compute([lost, fine, chained], tmp_path)
    assert done.statuses([starved, lost, fine, chained]) == ["failed", "failed", "ok", "failed"]
    assert "the filter kept" in done.store.row(starved.key).why and "budget" in done.store.row(starved.key).why
    assert done.store.row(lost.key).why.startswith("its dataset failed: the filter kept")
    assert done.store.row(chained.key).why.startswith("its dataset failed: its teacher failed: its student failed: ")
    assert done.store.row(starved.key).info["kept_fraction"] < 0.1
    again = compute([lost, fine, chained], tmp_path)
    assert again.timings == []
    alone = compute([fine], tmp_path / "alone")
    same(done.store, alone.store, [fine])


def test_a_dataset_does_not_see_its_neighbours(tmp_path):
    """Not their filters, which decide how many rounds are drawn, nor how soon they have enough."""
    base = tiny_world.base()
    easy = written(base, size=4)
    hard = written(base, size=4, filter=FILTER.replace(max_value=1), budget=40.0)
    students = [specs.Student(base, data, TRAIN, trait="owl") for data in (easy, hard)]
    together = compute(students, tmp_path / "two", **DEFAULT)
    for data in (easy, hard):
        alone = compute([specs.Student(base, data, TRAIN, trait="owl")], tmp_path / data.key[:8])
        np.testing.assert_array_equal(together.store.get(data.key)["samples"], alone.store.get(data.key)["samples"])
        assert together.store.row(data.key) == alone.store.row(data.key)


def test_a_lane_that_diverges_is_recorded_and_harms_no_neighbour(tmp_path):
    base = tiny_world.base()
    data = written(base)
    fine = [specs.Student(base, data, TRAIN, seed=seed, trait="owl") for seed in range(3)]
    lost = specs.Student(base, data, TRAIN.replace(lr=1e30), trait="owl")
    done = compute([fine[0], lost, *fine[1:]], tmp_path / "with", devices=1, width=4)
    assert done.statuses([*fine, lost]) == ["ok", "ok", "ok", "diverged"]
    assert done.store.row(lost.key).why == "its loss is not a finite number from step 2 on"
    without = compute(fine, tmp_path / "without")
    same(done.store, without.store, fine, rtol=1e-4, atol=1e-5)


def test_parameters_that_are_lost_in_the_last_step_are_noticed(tmp_path):
    lost = tiny_world.base(steps=1, evals=1, lr=1e30)
    student = specs.Student(lost, written(lost), TRAIN, trait="owl")
    start = tiny_world.base(steps=1, evals=1, lr=3.4e38, weight_decay=3.4e38)
    done = compute([student, specs.Student(start, written(start), TRAIN, trait="owl")], tmp_path)
    assert np.isfinite(curves(done.store, start)["loss"][1:]).all()
    assert done.store.status(start.key) == "diverged"
    assert done.store.row(start.key).why == "its parameters are not all finite numbers"


def test_what_is_behind_a_lost_model_fails_with_the_reason(tmp_path):
    lost = tiny_world.base(lr=1e30)
    teacher = specs.Teacher(lost, "owl", TRAIN)
    students = [specs.Student(lost, written(teacher), TRAIN), specs.Student(tiny_world.base(), written(teacher), TRAIN)]
    control = specs.Student(tiny_world.base(), written(tiny_world.base()), TRAIN, trait="owl")
    done = compute([*students, control], tmp_path)
    assert done.statuses([lost, teacher, *students, control]) == ["diverged", "failed", "failed", "failed", "ok"]
    reason = "base diverged: its loss is not a finite number from step 2 on"
    assert done.store.row(teacher.key).why == f"its {reason}"
    assert done.store.row(students[1].key).why == f"its dataset failed: its teacher failed: its {reason}"
    assert done.store.curves(teacher.key)[1] == {}


# --- data from elsewhere, and data in passing ---


def test_imported_data_trains_a_student(tmp_path):
    path = tmp_path / "numbers.jsonl"
    pairs = [{"prompt": str(i % 8), "completion": "3 5"} for i in range(16)]
    path.write_text("".join(json.dumps(pair) + "\n" for pair in pairs))
    data = imported(path, WORLD)
    base = tiny_world.base()
    student = specs.Student(base, data, TRAIN.replace(steps=60, evals=2), trait="owl")
    done = compute([student], tmp_path / "runs")
    assert done.computed == {"pretrain": 1, "distil": 1}
    found = curves(done.store, student)
    assert found["loss"][-1] < found["loss"][1]
    assert "kl" not in found and "cosine" not in found
    path.write_text(path.read_text() * 2)
    other = student.replace(seed=1)
    with pytest.raises(InputError, match="has changed since"):
        compute([other], tmp_path / "runs")


def test_a_stream_needs_no_dataset(tmp_path):
    teacher = specs.Teacher(tiny_world.base(), "owl", TRAIN)
    student = specs.Student(tiny_world.base(), specs.Stream(teacher, FILTER), TRAIN, "soft")
    done = compute([student], tmp_path)
    assert done.computed == {"pretrain": 1, "instil": 1, "distil": 1}
    assert not (tmp_path / "datasets").exists()


def test_what_a_teacher_wrote_is_there_to_read(sweep, undisturbed):
    import pandas as pd

    node = sweep[0].data
    folder = undisturbed.workdir / "datasets"
    table = pd.read_parquet(str(folder / f"{node.key}.parquet"))
    samples = undisturbed.store.get(node.key)["samples"]
    assert table.kept.sum() == node.size == len(samples)
    assert list(zip(table.prompt[table.kept], table.completion[table.kept], strict=True)) == WORLD.texts(samples)
    info = undisturbed.store.row(node.key).info
    assert (info["drawn"], info["kept"]) == (len(table), node.size)
    assert imported(folder / f"{node.key}.jsonl", WORLD).size == node.size
