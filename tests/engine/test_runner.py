"""The host loop: what is computed, reused, resumed and said, on a world that the package does not know.

Where layouts are not the matter, lanes run one at a time: one program per stage then serves nearly all tests.
"""

import dataclasses
import functools
import io
import json
import os
import signal
import threading
import types

import jax
import numpy as np
import orbax.checkpoint
import pytest
import tiny_world
from etils import epath
from rich.console import Console
from tiny_world import FILTER, TRAIN, WORLD, TinyWorld, written

from subl_jax import specs, stages
from subl_jax.engine import lanes, runner
from subl_jax.engine.delivery import run_info
from subl_jax.engine.lanes import Layout
from subl_jax.engine.observers import NoTracker
from subl_jax.engine.plan import make_plan
from subl_jax.engine.runner import Engine, plan_of, preemption_notice
from subl_jax.engine.settings import Settings
from subl_jax.errors import InputError, OutOfMemory, Preempted, StorageError
from subl_jax.stages import collecting
from subl_jax.storage.store import Store
from subl_jax.tracking.terminal import Progress

ALONE = {"devices": 1, "lanes_a_batch": 1}
DEFAULT = {"width": 0}  # what the engine chooses for this machine
LONG = TRAIN.replace(steps=12, evals=6)


@dataclasses.dataclass
class Done:
    """What one call of the engine left behind."""

    timings: list
    store: Store
    text: str

    @property
    def computed(self):
        """Stage → lanes that were computed."""
        counts = {}
        for timing in self.timings:
            counts[timing.stage] = counts.get(timing.stage, 0) + timing.lanes
        return counts

    def statuses(self, nodes):
        return [self.store.status(node.key) for node in nodes]


def compute(students, workdir, tracker=None, preempted=lambda: False, **settings):
    output = io.StringIO()
    progress = Progress(Console(file=output, width=400))
    store = Store(workdir, warn=progress.warn)
    settings = Settings(**{"tracker": "none", "measure_layout": False, **(settings or ALONE)})
    plan = plan_of(list(students), store)
    engine = Engine(epath.Path(workdir), "a sweep", store, settings, tracker or NoTracker(), progress, preempted)
    return Done(engine.compute(plan), store, output.getvalue())


def curves(store, node):
    return store.curves(node.key)[1]


def same(one, other, nodes, **tolerance):
    """Whether two stores hold the same curves and arrays for `nodes`; equal to the bit without a tolerance."""
    for node in nodes:
        assert one.status(node.key) == other.status(node.key)
        np.testing.assert_array_equal(one.curves(node.key)[0], other.curves(node.key)[0])
        pairs = [(curves(one, node), curves(other, node))]
        trees = one.get(node.key), other.get(node.key)
        if trees[0] is not None:
            pairs += [(_flat(trees[0]), _flat(trees[1]))]
        for a, b in pairs:
            assert a.keys() == b.keys()
            for name in a:
                np.testing.assert_allclose(a[name], b[name], **{"rtol": 0, **tolerance}, err_msg=name)


def _flat(tree, prefix=""):
    flat = {}
    for name, value in tree.items():
        flat.update(_flat(value, f"{prefix}{name}/") if isinstance(value, dict) else {prefix + name: value})
    return flat


def lineage(students):
    """Every node behind the students, once."""
    nodes = {}

    def walk(value):
        if isinstance(value, specs.Node) and not isinstance(value, specs.Imported):
            nodes[value.key] = value
        if isinstance(value, specs.Spec):
            for name in specs.roles(type(value)):
                walk(getattr(value, name))

    for student in students:
        walk(student)
    return list(nodes.values())


@pytest.fixture(scope="module", autouse=True)
def compiled_once():
    """Engines of different tests share programs, as one engine does within a sweep."""
    programs, compile_program = {}, lanes.compile_program

    @functools.wraps(compile_program)
    def shared(stage, spec, layout, inputs, matmul):
        form = json.dumps([specs.static_form(spec), dataclasses.astuple(layout), str(inputs), matmul])
        if form not in programs:
            programs[form] = compile_program(stage, spec, layout, inputs, matmul)
        return programs[form]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(lanes, "compile_program", shared)
        yield


@pytest.fixture(scope="module")
def sweep():
    return list(tiny_world.students())


@pytest.fixture(scope="module")
def undisturbed(sweep, tmp_path_factory):
    return compute(sweep, tmp_path_factory.mktemp("undisturbed"))


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


@pytest.mark.parametrize(
    ("settings", "layout"),
    [
        (DEFAULT, Layout(3, 2, 1)),
        ({"devices": 1, "width": 16}, Layout(1, 1, 5)),
        ({"devices": 2, "width": 2, "lanes_a_batch": 4}, Layout(2, 1, 2)),
    ],
    ids=["default", "one wide batch", "small batches"],
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
    data = collecting.imported(path, WORLD)
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
    folder = epath.Path(undisturbed.store._directory).parent / "datasets"
    table = pd.read_parquet(str(folder / f"{node.key}.parquet"))
    samples = undisturbed.store.get(node.key)["samples"]
    assert table.kept.sum() == node.size == len(samples)
    assert list(zip(table.prompt[table.kept], table.completion[table.kept], strict=True)) == WORLD.texts(samples)
    info = undisturbed.store.row(node.key).info
    assert (info["drawn"], info["kept"]) == (len(table), node.size)
    assert collecting.imported(folder / f"{node.key}.jsonl", WORLD).size == node.size


# --- interruptions ---


def test_batches_are_cut_alike_whatever_is_finished():
    """Otherwise a batch that was interrupted would not be met again, nor its checkpoint."""
    bases = [tiny_world.base(seed) for seed in range(3)]
    students = [
        specs.Student(base, written(specs.Teacher(base, trait, TRAIN)), TRAIN)
        for trait in WORLD.traits
        for base in bases
    ]
    whole = make_plan(students, ()).groups
    rest = make_plan(students, {base.key for base in bases}).groups
    assert [group.nodes for group in whole[1:]] == [group.nodes for group in rest]


class After:
    """A notice that comes at the n-th time it is asked for."""

    def __init__(self, n):
        self.n, self.asked = n, 0

    def __call__(self):
        self.asked += 1
        return self.asked > self.n


def _rounds_run(monkeypatch):
    rounds, advance = [], lanes.Program.advance

    def counted(program, arguments, state, steps, measure):
        rounds.append(steps)
        return advance(program, arguments, state, steps, measure)

    monkeypatch.setattr(lanes.Program, "advance", counted)
    return rounds


def _shown(monkeypatch):
    """[stage, work, work shown as done] of each group."""
    shown, begin, advance = [], Progress.begin, Progress.advance

    def begun(progress, stage, count, work, layout):
        shown.append([stage, work, 0])
        begin(progress, stage, count, work, layout)

    def advanced(progress, work, restored=False):
        shown[-1][2] += work
        advance(progress, work, restored)

    monkeypatch.setattr(Progress, "begin", begun)
    monkeypatch.setattr(Progress, "advance", advanced)
    return shown


def _with_teachers_that_stop():
    base, train = tiny_world.base(steps=0), specs.Train(steps=60, batch=8, evals=10, lr=0.05)
    for seed, until in enumerate((0.6, 0.9, 0.99, 0.999)):
        teacher = specs.Teacher(base, "cat", train, until=until, seed=seed)
        yield specs.Student(base, written(teacher), TRAIN)


@pytest.mark.parametrize("settings", [{}, {"stretch_seconds": 1e-9}, {"width": 1, "devices": 2}], ids=str)
def test_a_batch_of_teachers_ends_once_all_have_reached_their_target(tmp_path, monkeypatch, settings):
    """With the curves and parameters of teachers that are looked at until the last round, to the bit."""
    sweep, settings = list(_with_teachers_that_stop()), {"devices": 1, **settings}
    teachers = [student.data.teacher for student in sweep]
    steps, shown = _rounds_run(monkeypatch), _shown(monkeypatch)
    done = compute(sweep, tmp_path / "short", **settings)
    short = sum(steps)
    with monkeypatch.context() as patch:
        patch.setitem(vars(stages.INSTIL), "reached", None)
        steps.clear()
        whole = compute(sweep, tmp_path / "long", **settings)
    same(done.store, whole.store, teachers)
    taken = [int(curves(done.store, teacher)["steps_taken"][-1]) for teacher in teachers]
    assert 0 < max(taken) < 54 and len(set(taken)) > 1
    # A round more may be under way when it is known.
    assert max(taken) <= 60 - (sum(steps) - short) <= max(taken) + 6
    (instil,) = (one for one in shown[:4] if one[0] == "instil")
    assert instil[1] == instil[2] == 4 * 60
    assert [timing.lane_steps for timing in done.timings if timing.stage == "instil"] == [sum(taken)]


def test_teachers_that_stop_may_be_interrupted(tmp_path):
    sweep = list(_with_teachers_that_stop())
    whole, interruptions = compute(sweep, tmp_path / "whole"), 0
    while interruptions < 50:
        try:
            done = compute(sweep, tmp_path / "torn", preempted=After(4), stretch_seconds=1e-9)
            break
        except Preempted:
            interruptions += 1
    assert interruptions >= 3
    same(done.store, whole.store, lineage(sweep))


def test_of_a_group_that_goes_on_steps_that_were_needed_count(tmp_path):
    sweep, settings = list(_with_teachers_that_stop()), {"devices": 1, "stretch_seconds": 1e-9}
    with pytest.raises(Preempted):
        compute(sweep, tmp_path, preempted=After(20), **settings)
    begun = max(json.loads(path.read_text())["steps"] for path in (tmp_path / "checkpoints").glob("*/seals/*.json"))
    done = compute(sweep, tmp_path, **settings)
    taken = [int(curves(done.store, student.data.teacher)["steps_taken"][-1]) for student in sweep]
    assert min(taken) < begun < max(taken)
    lane_steps = [timing.lane_steps for timing in done.timings if timing.stage == "instil"]
    assert lane_steps == [sum(max(steps - begun, 0) for steps in taken)]


def test_one_teacher_that_does_not_stop_keeps_its_batch_going(tmp_path):
    sweep = list(_with_teachers_that_stop())
    base, data = sweep[0].start, sweep[0].data
    on = specs.Student(base, data.replace(teacher=data.teacher.replace(until=1.0)), TRAIN)
    done = compute([*sweep, on], tmp_path, devices=1)
    assert curves(done.store, on.data.teacher)["steps_taken"][-1] == 60
    assert curves(done.store, sweep[0].data.teacher)["steps_taken"][-1] < 60


@pytest.mark.parametrize("stretch", [4.0, 1e-9], ids=["after a round", "within a round"])
def test_an_interrupted_sweep_goes_on_where_it_was(tmp_path, monkeypatch, stretch):
    """It is interrupted every few calls, in every stage, and ends with the same numbers to the bit."""
    sweep = list(tiny_world.students(2, ["owl"], train=LONG))
    sweep = [s.replace(data=s.data.replace(size=64, budget=8.0, round=16)) for s in sweep]
    settings = {"devices": 2, "lanes_a_batch": 8, "stretch_seconds": stretch}
    rounds = _rounds_run(monkeypatch)
    whole = compute(sweep, tmp_path / "whole", **settings | {"stretch_seconds": 4.0})
    assert set(rounds) == {0, 2, 16}  # a measurement, training, writing
    shown = _shown(monkeypatch)
    needed, interruptions = sum(2 if n == 2 and stretch < 1 else 1 for n in rounds), 0
    rounds.clear()
    while True:
        assert interruptions < 50
        try:
            done = compute(sweep, tmp_path / "torn", preempted=After(4), **settings)
            break
        except Preempted:
            interruptions += 1
            assert (tmp_path / "torn" / "checkpoints").exists()
    assert interruptions >= 5
    # A group that ends has all of its work shown, whatever of it was done in earlier runs.
    ended = [one for one, after in zip(shown, [*shown[1:], [None]], strict=True) if one[0] != after[0]]
    assert [stage for stage, _, _ in ended] == ["pretrain", "instil", "write", "distil"]
    assert all(work == done for stage, work, done in ended if stage != "write")
    same(done.store, whole.store, lineage(sweep))
    # At a restart at most one round of writing is drawn in vain: whether there is enough is known a round late.
    assert needed <= len(rounds) <= needed + interruptions
    assert not (tmp_path / "torn" / "checkpoints").exists()


def test_training_runs_for_as_long_as_was_asked_before_the_host_looks_up(monkeypatch):
    now = [100.0]
    monkeypatch.setattr(runner, "time", types.SimpleNamespace(monotonic=lambda: now[0]))
    pace = runner._Pace(guess=20.0)
    assert pace.steps(4.0) == 1 and pace.is_old  # at least a step
    pace.took(2.0, 4, ends=False, wanted=4.0)
    assert pace.steps(4.0) == 8 and not pace.is_old
    now[0] += 61.0
    assert pace.is_old
    pace.took(25.0, 8, ends=True, wanted=4.0)  # with a measurement, and too long: what the steps take is not known
    assert pace.steps(4.0) == 1 and pace.is_old
    pace.took(0.5, 1, ends=False, wanted=4.0)
    assert pace.steps(4.0) == 8 and not pace.is_old
    now[0] += 61.0
    pace.took(1.0, 1, ends=False, wanted=4.0)  # much of it may be what a first call costs
    assert pace.steps(4.0) == 4 and pace.is_old
    pace.took(2.0, 4, ends=False, wanted=4.0)
    assert pace.steps(4.0) == 8 and not pace.is_old
    now[0] += 61.0
    pace.took(3.0, 8, ends=True, wanted=4.0)
    assert pace.steps(4.0) == 10 and not pace.is_old
    assert runner._Pace(guess=0.0).steps(4.0) == 2**31 - 1


def test_rounds_that_are_longer_than_was_guessed_are_cut(tmp_path, monkeypatch):
    """Every step takes a second, of which the guess knows nothing; nothing is timed but what runs alone."""
    now, calls, advance = [0.0], [], lanes.Program.advance

    def slow(program, arguments, state, steps, measure):
        calls.append((steps, measure))
        now[0] += float(steps)
        return advance(program, arguments, state, steps, measure)

    def clock():
        now[0] += 1e-6
        return now[0]

    monkeypatch.setattr(lanes.Program, "advance", slow)
    monkeypatch.setattr(runner, "time", types.SimpleNamespace(perf_counter=clock, monotonic=clock))
    base = tiny_world.base(steps=90, evals=2)
    done = compute([specs.Student(base, written(base), LONG, trait="owl")], tmp_path, stretch_seconds=4.5, **ALONE)
    of_base = calls[: calls.index((written(base).round, True))]
    assert of_base == [(0, True), (45, True), *[(4, False)] * 11, (1, True)]  # the first round is timed
    whole = compute([specs.Student(base, written(base), LONG, trait="owl")], tmp_path / "whole", **ALONE)
    same(done.store, whole.store, [base])


def test_a_round_that_draws_samples_is_not_cut(tmp_path, monkeypatch):
    rounds = _rounds_run(monkeypatch)
    base = tiny_world.base()
    student = specs.Student(base, specs.Stream(base, FILTER), LONG)
    compute([student], tmp_path, stretch_seconds=1e-9)
    assert rounds[-1 - LONG.evals :] == [0, *[2] * LONG.evals]  # the student's


def test_the_round_in_flight_is_saved_before_the_engine_lets_go(tmp_path, monkeypatch):
    rounds = _rounds_run(monkeypatch)
    student = specs.Student(tiny_world.base(), written(tiny_world.base()), LONG, trait="owl")
    with pytest.raises(Preempted):
        compute([student], tmp_path, preempted=lambda: bool(rounds))
    assert rounds == [0]
    done = compute([student], tmp_path)
    assert "cannot be used" not in done.text
    assert rounds[:2] == [0, 2]  # of the base, whose first round was not repeated


def test_a_notice_that_comes_while_a_program_is_compiled_is_heeded_before_it_runs(tmp_path, monkeypatch):
    rounds = _rounds_run(monkeypatch)
    with pytest.raises(Preempted):
        compute([specs.Student(tiny_world.base(), written(tiny_world.base()), LONG)], tmp_path, preempted=lambda: True)
    assert rounds == []


@pytest.mark.parametrize("within", [False, True], ids=["after a round", "within a round"])
def test_a_checkpoint_of_time_is_used_after_a_crash(tmp_path, monkeypatch, within):
    from subl_jax.engine import runner

    base = tiny_world.base(steps=LONG.steps, evals=LONG.evals)
    student = specs.Student(base, written(base), LONG, trait="owl")
    whole = compute([student], tmp_path / "whole")
    fetched, fetch = [], runner._Batch._fetch

    def crashing(batch, running):
        fetched.append(running)
        if len(fetched) == 5:
            raise KeyboardInterrupt
        fetch(batch, running)

    cut = {"stretch_seconds": 1e-9} if within else {}
    with monkeypatch.context() as patch:
        patch.setattr(runner._Batch, "_fetch", crashing)
        with pytest.raises(KeyboardInterrupt):
            compute([student], tmp_path / "crashed", checkpoint_seconds=1e-9, **cut, **ALONE)
    rounds = _rounds_run(monkeypatch)
    done = compute([student], tmp_path / "crashed")
    assert "cannot be used" not in done.text
    # The base goes on; its first round has no steps. It was saved after a measurement and three steps.
    assert rounds[:2] == ([1, 2] if within else [2, 2])
    assert done.timings[0].lane_steps == LONG.steps - (3 if within else 6)  # those of this run
    same(done.store, whole.store, lineage([student]))


def test_a_checkpoint_that_does_not_fit_is_said_so_and_left(tmp_path):
    student = specs.Student(tiny_world.base(), written(tiny_world.base()), LONG, trait="owl")
    with pytest.raises(Preempted):
        compute([student], tmp_path, preempted=After(2))
    for path in (tmp_path / "checkpoints").rglob("*"):
        if path.is_file() and path.suffix != ".json":
            path.write_bytes(b"damaged")
    done = compute([student], tmp_path)
    assert "cannot be used and is removed" in done.text
    same(done.store, compute([student], tmp_path / "whole").store, lineage([student]))


@pytest.mark.parametrize(
    ("bases", "most"),
    [(3, 2), (10, 4)],  # batches of 2, 1: the last one alone needs no room for two; of 4, 4, 2: six left make 3, 3
    ids=["shorter", "longer"],
)
def test_an_interrupted_batch_goes_on_as_it_was_cut(tmp_path, monkeypatch, bases, most):
    rounds = _rounds_run(monkeypatch)
    starts = [tiny_world.base(seed) for seed in range(bases)]
    sweep = [specs.Student(start, written(start), LONG, trait="owl") for start in starts]
    of_a_base = TRAIN.evals + 1
    with pytest.raises(Preempted):
        compute(sweep, tmp_path, preempted=lambda: len(rounds) == of_a_base + 2, devices=1, lanes_a_batch=most)
    rounds.clear()
    with pytest.raises(Preempted):
        compute(sweep, tmp_path, preempted=lambda: len(rounds) > of_a_base - 2, devices=1, lanes_a_batch=most)
    assert rounds[: of_a_base - 2] == [TRAIN.steps // TRAIN.evals] * (of_a_base - 2)  # and no first round of 0 steps
    assert len(rounds) == of_a_base - 1
    done = Store(tmp_path, readonly=True).done()
    assert len(done) == min(bases, 2 * most)
    whole = compute(sweep[:1] + sweep[most : most + 1], tmp_path / "whole")
    same(Store(tmp_path, readonly=True), whole.store, [starts[0], starts[most]])


def test_what_other_cuts_of_a_group_left_behind_is_removed_at_the_end(tmp_path):
    sweep = list(tiny_world.students(2, ["owl"], train=LONG))
    with pytest.raises(Preempted):
        compute(sweep, tmp_path, preempted=After(2), devices=2, lanes_a_batch=2)
    done = compute(sweep, tmp_path)
    assert set(done.statuses(sweep)) == {"ok"}
    assert not (tmp_path / "checkpoints").exists()


# --- damage ---


# --- written behind ---


def test_a_batch_is_written_while_the_next_one_is_computed(tmp_path, monkeypatch):
    put, advance = Store.put, lanes.Program.advance
    dispatched, overlapped = threading.Semaphore(0), []

    def slow_put(store, stage, rows, *arguments, **options):
        assert threading.current_thread() is not threading.main_thread()
        if stage == "pretrain":
            while dispatched.acquire(blocking=False):
                pass
            # Were it not behind the next batch, nothing would come.
            overlapped.append(dispatched.acquire(timeout=10) if not overlapped else True)
        return put(store, stage, rows, *arguments, **options)

    def seen(*arguments):
        dispatched.release()
        return advance(*arguments)

    monkeypatch.setattr(Store, "put", slow_put)
    monkeypatch.setattr(lanes.Program, "advance", seen)
    students = list(tiny_world.students())
    done = compute(students, tmp_path)
    assert overlapped == [True, True]
    assert set(done.statuses(students)) == {"ok"}


@pytest.mark.parametrize(("failing", "batches", "stored"), [("instil", 3, 2), ("distil", 13, 12)])
def test_what_cannot_be_written_behind_ends_the_sweep_with_its_line(tmp_path, monkeypatch, failing, batches, stored):
    """Its save stays, and the next run goes on from there."""
    put, stages, tracker = Store.put, [], FakeTracker()

    def full(store, stage, rows, *arguments, **options):
        stages.append(stage)
        if stage == failing:
            raise StorageError("cannot write it: disk full")
        return put(store, stage, rows, *arguments, **options)

    with monkeypatch.context() as patch, pytest.raises(StorageError, match="^cannot write it: disk full$"):
        patch.setattr(Store, "put", full)
        compute(list(tiny_world.students()), tmp_path, tracker, checkpoint_seconds=1e-6, **ALONE)
    assert stages.count(failing) == 1 and len(stages) == batches and not tracker.finished
    assert list(Store(tmp_path).done().values()) == ["ok"] * stored
    rounds = _rounds_run(monkeypatch)
    assert list((tmp_path / "checkpoints").glob("*/saves/*"))
    done = compute(list(tiny_world.students())[:1], tmp_path, tracker)
    assert rounds[0] != 0  # not from its start
    assert done.statuses(list(tiny_world.students())[:1]) == ["ok"] and len(tracker.finished) == 1


@pytest.mark.parametrize("damage", ["truncated", "flipped", "missing", "sidecar"])
def test_a_damaged_artefact_is_noticed_and_computed_again(sweep, undisturbed, tmp_path, damage):
    compute(sweep[:6], tmp_path)
    folder = tmp_path / "artifacts"
    for sidecar in folder.glob("*.json"):
        content = json.loads(sidecar.read_text())
        path = folder / content["data"]
        if content["stage"] not in ("instil", "distil"):
            continue
        if damage == "truncated":
            path.write_bytes(path.read_bytes()[:-10])
        elif damage == "flipped":
            data = bytearray(path.read_bytes())
            data[-1] ^= 1
            path.write_bytes(data)
        elif damage == "missing":
            path.unlink()
        else:
            sidecar.write_text(sidecar.read_text()[:100])
    again = compute(sweep[:6], tmp_path)
    # The teachers are needed since their students are, which are measured against them.
    assert again.computed == {"instil": 2, "distil": 5}
    assert again.text.count("damaged") == 7 and "computed again" in again.text
    same(again.store, undisturbed.store, lineage(sweep[:6]))


def test_a_model_damaged_behind_a_finished_student_is_computed_again(sweep, undisturbed, tmp_path):
    compute(sweep[:6], tmp_path)
    for sidecar in (tmp_path / "artifacts").glob("*.json"):
        if json.loads(sidecar.read_text())["stage"] == "instil":
            sidecar.write_text("damaged")
    assert compute(sweep[:6], tmp_path).computed == {"instil": 2}
    assert not compute(sweep[:6], tmp_path).computed
    same(Store(tmp_path), undisturbed.store, lineage(sweep[:6]))


# --- memory ---

FULL = "RESOURCE_EXHAUSTED: Out of memory allocating 123 bytes."


def full_above(monkeypatch, most, method="advance"):
    """Programs of more than `most` lanes have no room; the calls that had."""
    fits, calls = getattr(lanes.Program, method), []

    def call(self, *arguments):
        if self.layout.lanes > most:
            raise jax.errors.JaxRuntimeError(FULL)
        calls.append(self.layout.lanes)
        return fits(self, *arguments)

    monkeypatch.setattr(lanes.Program, method, call)
    return calls


@pytest.mark.parametrize("method", ["start", "advance"])
def test_batches_that_do_not_fit_are_halved(method, sweep, tmp_path, monkeypatch):
    alone = compute(sweep, tmp_path / "alone")
    calls = full_above(monkeypatch, 2, method)
    done = compute(sweep, tmp_path / "halved", devices=1, width=8, lanes_a_batch=8)
    assert max(calls) == 2
    assert done.statuses(sweep) == ["ok"] * len(sweep)
    same(alone.store, done.store, sweep, rtol=1e-5, atol=1e-6)
    assert "distil: 1 device × 1 in turn × 5 wide does not fit into memory; going on with" in done.text
    assert done.computed == alone.computed
    assert {timing.layout for timing in done.timings} <= {f"1 device × 1 in turn × {width} wide" for width in (1, 2)}


def test_results_that_do_not_fit_are_computed_by_halves(sweep, tmp_path, monkeypatch):
    alone, bring = compute(sweep, tmp_path / "alone"), lanes.own_rows

    def own_rows(tree):
        if "params" in tree and len(jax.tree.leaves(tree)[0]) > 2:
            raise jax.errors.JaxRuntimeError(FULL)
        return bring(tree)

    monkeypatch.setattr(lanes, "own_rows", own_rows)
    done = compute(sweep, tmp_path / "halved", devices=1, width=8, lanes_a_batch=8)
    assert "distil: 1 device × 1 in turn × 5 wide does not fit into memory; going on with" in done.text
    same(alone.store, done.store, sweep, rtol=1e-5, atol=1e-6)


def test_a_save_that_does_not_fit_is_computed_again_by_halves(tmp_path, monkeypatch):
    sweep = [specs.Student(tiny_world.base(), written(tiny_world.base()), LONG, trait="owl", seed=i) for i in range(4)]
    settings = {"devices": 1, "width": 4, "lanes_a_batch": 4}
    compute([sweep[0].replace(train=TRAIN)], tmp_path)  # so that what is interrupted are the students
    with pytest.raises(Preempted):
        compute(sweep, tmp_path, preempted=After(2), **settings)
    asked = []

    def full(*args, **kwargs):
        asked.append(1)
        raise jax.errors.JaxRuntimeError(FULL)

    monkeypatch.setattr(orbax.checkpoint.StandardCheckpointHandler, "restore", full)
    done = compute(sweep, tmp_path, **settings)
    assert asked and "distil: 1 device × 1 in turn × 4 wide does not fit into memory" in done.text
    assert "cannot be used" not in done.text
    same(done.store, compute(sweep, tmp_path / "whole").store, sweep, rtol=1e-5, atol=1e-6)
    assert not (tmp_path / "checkpoints").exists()


def test_what_was_done_before_memory_ran_out_is_not_done_again(tmp_path, monkeypatch):
    students = [specs.Student(tiny_world.base(i), written(tiny_world.base(i)), LONG, trait="owl") for i in range(4)]
    calls, advance = [], lanes.Program.advance

    def second_batch(self, arguments, state, steps, measure):
        calls.append(self.layout.lanes)
        if len(calls) == rounds + 3:
            raise jax.errors.JaxRuntimeError(FULL)
        return advance(self, arguments, state, steps, measure)

    # What they build on is there, so that all that is computed is theirs.
    compute([student.replace(train=TRAIN) for student in students], tmp_path, devices=1, lanes_a_batch=2)
    rounds = LONG.evals + 1
    monkeypatch.setattr(lanes.Program, "advance", second_batch)
    done = compute(students, tmp_path, devices=1, lanes_a_batch=2)
    assert done.statuses(students) == ["ok"] * 4
    # A batch of two, two rounds of the second and the one that failed, and its two lanes one by one.
    assert calls == [2] * (rounds + 3) + [1] * (2 * rounds)


def test_programs_that_are_too_large_on_paper_are_not_run(sweep, tmp_path, monkeypatch):
    alone = compute(sweep, tmp_path / "alone")
    there, needed, advance = 24_000, [], lanes.Program.advance
    monkeypatch.setattr(runner.memory, "free", lambda devices: there)

    def call(self, *arguments):
        needed.append((self.layout.lanes, self.bytes_needed - self.bytes_there))
        return advance(self, *arguments)

    monkeypatch.setattr(lanes.Program, "advance", call)
    done = compute(sweep, tmp_path / "paper", devices=1, width=8, lanes_a_batch=8)
    assert "does not fit into memory; going on with" in done.text
    assert max(lanes for lanes, _ in needed) > 1 and all(size <= there for _, size in needed)
    # One lane is tried whatever is said of it: that is an estimate.
    there = 1
    assert compute(sweep[:1], tmp_path / "estimate", devices=1, width=8).statuses(sweep[:1]) == ["ok"]
    same(alone.store, done.store, sweep, rtol=1e-5, atol=1e-6)


def test_widths_that_cannot_fit_are_not_compiled(sweep, tmp_path, monkeypatch):
    """It follows from the first that does not: half of its lanes need at least half as much."""
    there, compiled, make = 1.0, [], lanes.compile_program

    def counted(*arguments, **options):
        program = make(*arguments, **options)
        compiled.append((arguments[0].name, program.layout.width, program.bytes_needed - program.bytes_there))
        return program

    monkeypatch.setattr(runner.memory, "free", lambda devices: there)
    monkeypatch.setattr(lanes, "compile_program", counted)

    def tried(name, stage="distil"):
        compiled.clear()
        compute(sweep, tmp_path / name, devices=1, width=6, lanes_a_batch=6)
        return [(width, needed) for of, width, needed in compiled if of == stage]

    (widest, needed), *others = tried("none")
    assert widest > 4 and [width for width, _ in others] == [1]
    there = 0.45 * needed
    widths = [width for width, _ in tried("less than half")]
    half = -(-widest // 2)
    assert widths[0] == widest and half not in widths and widths[1] == -(-half // 2)


def test_one_lane_that_does_not_fit_is_one_line(sweep, tmp_path, monkeypatch):
    full_above(monkeypatch, 0)
    with pytest.raises(
        OutOfMemory, match="^pretrain: not even 1 device × 1 in turn × 1 wide fits .*RESOURCE_EXHAUSTED"
    ):
        compute(sweep, tmp_path, devices=1, width=4)


def test_weights_that_do_not_fit_are_loaded_once(sweep, tmp_path, monkeypatch):
    loads = []

    def placed(world, mesh, sharing):
        loads.append(1)
        raise jax.errors.JaxRuntimeError(FULL)

    monkeypatch.setattr(lanes, "_placed", placed)
    monkeypatch.setattr(lanes, "compile_program", lanes.compile_program.__wrapped__)
    with pytest.raises(OutOfMemory, match="config.engine.tensor"):
        compute(sweep, tmp_path, devices=1, width=8)
    assert loads == [1]


def test_another_error_of_a_program_is_not_taken_for_a_full_device(sweep, tmp_path, monkeypatch):
    def broken(self, *arguments):
        raise jax.errors.JaxRuntimeError("INTERNAL: something else")

    monkeypatch.setattr(lanes.Program, "advance", broken)
    with pytest.raises(jax.errors.JaxRuntimeError, match="something else"):
        compute(sweep, tmp_path)


# --- tracking ---


class FakeTracker:
    def __init__(self, delivered=()):
        self.runs, self.points, self.finished, self._delivered = {}, {}, {}, set(delivered)
        self.sweeps, self.groups, self.sums = [], [], None

    def start(self, run):
        if run.arm == "sweep":
            self.sweeps.append(run)
        else:
            self.runs[run.run_id] = run

    def log(self, run_id, steps, metrics):
        if run_id not in self.runs:
            self.groups.append((*steps, {name: float(values[0]) for name, values in metrics.items()}))
            return
        for i, step in enumerate(steps):
            self.points.setdefault(run_id, []).append((step, {name: float(v[i]) for name, v in metrics.items()}))

    def finish(self, run_id, summary, exit_code=0):
        if run_id not in self.runs:
            self.sums = summary
            return
        assert run_id not in self.finished
        self.finished[run_id] = (summary, exit_code)
        self._delivered.add(run_id)

    def delivered(self):
        return frozenset(self._delivered)

    def close(self):
        return []


def test_every_student_is_tracked_with_its_whole_curve(sweep, tmp_path):
    tracker = FakeTracker()
    done = compute(sweep, tmp_path, tracker)
    ids = {specs.run_id(student): student for student in sweep}
    assert tracker.runs.keys() == tracker.finished.keys() == tracker.points.keys() == ids.keys()
    assert len(ids) == 12
    for run_id, student in ids.items():
        steps, stored = done.store.curves(student.key)
        assert [step for step, _ in tracker.points[run_id]] == steps.tolist() == [0, 2, 4, 6]
        for name, values in {**stored, "target": stored[f"trait/{specs.trait_of(student)}"]}.items():
            np.testing.assert_array_equal([point[name] for _, point in tracker.points[run_id]], values)
        summary, exit_code = tracker.finished[run_id]
        assert (summary["status"], exit_code) == ("ok", 0)
        assert summary["target_start"] == stored[f"trait/{specs.trait_of(student)}"][0]
        assert summary["target_end"] == stored[f"trait/{specs.trait_of(student)}"][-1]


def test_a_tracker_that_missed_a_stored_student_gets_it_later_and_once(sweep, tmp_path):
    compute(sweep[:3], tmp_path)
    tracker = FakeTracker(delivered=[specs.run_id(sweep[0])])
    done = compute(sweep[:3], tmp_path, tracker)
    assert done.timings == []
    assert tracker.finished.keys() == {specs.run_id(student) for student in sweep[1:3]}
    assert [step for step, _ in tracker.points[specs.run_id(sweep[1])]] == [0, 2, 4, 6]
    repeated = compute(sweep[:3], tmp_path, tracker)
    assert repeated.timings == [] and len(tracker.finished) == 2


def test_lost_students_are_tracked_as_such(tmp_path):
    base = tiny_world.base()
    starved = specs.Student(base, written(base, filter=FILTER.replace(max_value=0), budget=1.0), TRAIN, trait="owl")
    wild = specs.Student(base, written(base), TRAIN.replace(lr=1e30), trait="owl")
    tracker = FakeTracker()
    compute([starved, wild], tmp_path, tracker)
    assert tracker.finished[specs.run_id(starved)] == ({"status": "failed"}, 1)
    summary, exit_code = tracker.finished[specs.run_id(wild)]
    assert (summary["status"], exit_code) == ("diverged", 1)
    assert len(tracker.points[specs.run_id(wild)]) == 4 and specs.run_id(starved) not in tracker.points


def test_the_sweep_has_a_run_of_its_own_with_a_row_per_group(sweep, tmp_path):
    tracker = FakeTracker()
    done = compute(sweep, tmp_path, tracker)
    (run,) = tracker.sweeps
    assert run.sweep == "a sweep" and run.config["settings"]["tracker"] == "none"
    assert [place for place, _ in tracker.groups] == list(range(len(done.timings)))
    for timing, (_, row) in zip(done.timings, tracker.groups, strict=True):
        numbers = {name: value for name, value in dataclasses.asdict(timing).items() if not isinstance(value, str)}
        assert row == {f"{timing.stage}/{name}": pytest.approx(value) for name, value in numbers.items()}
        assert timing.ceiling_percent > 0 and timing.bytes_peak > 2**20
    assert tracker.sums["lanes"] == sum(timing.lanes for timing in done.timings)
    assert compute(sweep, tmp_path, again := FakeTracker()).timings == [] and not again.sweeps


def test_groups_computed_elsewhere_are_told_as_they_end(sweep, tmp_path):
    tracker, store, told = FakeTracker(), Store(tmp_path), []
    settings, progress = Settings(tracker="none"), Progress(Console(file=io.StringIO()))

    def elsewhere(groups, stored, ended):
        for i, group in enumerate(groups):
            ended(runner.GroupTiming(group.stage.name, len(group.nodes), "1 device"))
            told.append([next(iter(row)).partition("/")[0] for _, row in tracker.groups])
            assert len(told[-1]) == i + 1
        return []

    Engine(epath.Path(tmp_path), "a sweep", store, settings, tracker, progress).compute(
        plan_of(sweep, store), elsewhere
    )
    assert told[-1] == ["pretrain", "instil", "write", "distil"] and tracker.sums["lanes"] > 0


def test_a_run_knows_its_lineage(sweep):
    info = run_info("a sweep", sweep[1])
    assert (info.arm, info.trait, info.world, info.sweep) == ("cross_init", "owl", "tiny", "a sweep")
    assert info.config["student"]["train"]["lr"] == TRAIN.lr
    assert info.config["teacher"]["trait"] == "owl"
    assert info.name == "cross_init-owl-base1-0"
    json.dumps(info.config)


# --- signals ---


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_becomes_a_notice_and_its_handler_comes_back(number):
    before = signal.getsignal(number)
    with preemption_notice() as told:
        assert not told()
        os.kill(os.getpid(), number)
        assert told()
        os.kill(os.getpid(), signal.SIGTERM)  # a second one is no haste
    assert signal.getsignal(number) is before


def test_a_second_ctrl_c_stops_at_once():
    before = signal.getsignal(signal.SIGINT)  # a background job of a shell ignores it
    with pytest.raises(KeyboardInterrupt), preemption_notice():
        os.kill(os.getpid(), signal.SIGINT)
        os.kill(os.getpid(), signal.SIGINT)
    assert signal.getsignal(signal.SIGINT) is before


def test_a_notebook_thread_has_no_signals():
    found = []

    def inside():
        with preemption_notice() as told:
            found.append(told())

    thread = threading.Thread(target=inside)
    thread.start()
    thread.join()
    assert found == [False]


# --- what is kept ---


def has_parameters(store, node):
    return store.get(node.key) is not None


@pytest.mark.parametrize("keep", ["all", "teachers", "curves"])
def test_parameters_are_kept_as_asked_and_everything_else_is_there(sweep, undisturbed, tmp_path, keep):
    done = compute(sweep, tmp_path, keep=keep, **ALONE)
    store, nodes = done.store, lineage(sweep)
    same(done.store, undisturbed.store, [node for node in nodes if keep == "all"])
    for node in nodes:
        leaf = isinstance(node, specs.Student)
        expected = isinstance(node, specs.Dataset) or keep == "all" or (keep == "teachers" and not leaf)
        assert has_parameters(store, node) == expected, node
        steps, values = store.curves(node.key)
        known_steps, known = undisturbed.store.curves(node.key)
        np.testing.assert_array_equal(steps, known_steps)
        assert values.keys() == known.keys()
        for metric, each in values.items():
            np.testing.assert_array_equal(each, known[metric])
    # Nothing is left behind by what was written twice, and a rerun finds all of it.
    sidecars = [json.loads(path.read_text()) for path in (tmp_path / "artifacts").glob("*.json")]
    assert {path.name for path in (tmp_path / "artifacts").glob("*.safetensors")} == {
        sidecar["data"] for sidecar in sidecars if sidecar["data"]
    }
    assert compute(sweep, tmp_path, keep=keep, **ALONE).computed == {}


def test_only_what_a_new_node_needs_is_computed_again(sweep, tmp_path):
    compute(sweep, tmp_path, keep="curves", **ALONE)
    old = sweep[0]
    new = old.replace(seed=7)
    done = compute([*sweep, new], tmp_path, keep="curves", **ALONE)
    # Its dataset was kept; its start and the teacher it is compared with were not.
    assert done.computed == {"pretrain": 1, "instil": 1, "distil": 1}
    assert not has_parameters(done.store, new.start)
    fresh = compute([new], tmp_path / "fresh", **ALONE).store
    _, values = done.store.curves(new.key)
    for metric, known in fresh.curves(new.key)[1].items():
        np.testing.assert_array_equal(values[metric], known)


def test_a_student_that_teaches_keeps_its_parameters_until_its_students_are_done(tmp_path):
    (first, *_) = tiny_world.students()
    second = specs.Student(first.start, written(first), TRAIN)
    store = compute([first, second], tmp_path / "teachers", keep="teachers", **ALONE).store
    assert has_parameters(store, first) and not has_parameters(store, second)
    store = compute([first, second], tmp_path / "curves", keep="curves", **ALONE).store
    assert not has_parameters(store, first) and not has_parameters(store, second)
    assert store.status(second.key) == "ok"
