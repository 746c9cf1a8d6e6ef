"""A sweep that is stopped, and goes on where it was, to the bit."""

import json
import types

import pytest
import tiny_world
from computing import ALONE, LONG, After, compute, curves, lineage, rounds_run, same
from few import few
from tiny_world import FILTER, TRAIN, WORLD, written

from subl_jax import specs, stages
from subl_jax.engine import batch, lanes, pace
from subl_jax.engine.plan import make_plan
from subl_jax.errors import Preempted
from subl_jax.storage.store import Store
from subl_jax.tracking.terminal import Progress


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


def _shown(monkeypatch):
    """[stage, work, work shown as done] of each group."""
    shown, begin, advance = [], Progress.begin, Progress.advance

    def begun(progress, group):
        shown.append([group.stage, group.work, 0])
        begin(progress, group)

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


CUTS = [{}, {"stretch_seconds": 1e-9}, {"width": 1, "devices": 2}]


@pytest.mark.parametrize("settings", few(CUTS, *CUTS[:2]), ids=str)
def test_a_batch_of_teachers_ends_once_all_have_reached_their_target(tmp_path, monkeypatch, settings):
    """With the curves and parameters of teachers that are looked at until the last round, to the bit."""
    sweep, settings = list(_with_teachers_that_stop()), {"devices": 1, **settings}
    teachers = [student.data.teacher for student in sweep]
    steps, shown = rounds_run(monkeypatch), _shown(monkeypatch)
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


@pytest.mark.slow
def test_teachers_that_stop_may_be_interrupted(tmp_path):
    sweep = list(_with_teachers_that_stop())
    whole, interruptions = compute(sweep, tmp_path / "whole"), 0
    while interruptions < 50:
        try:
            done = compute(sweep, tmp_path / "torn", preempted=After(12), stretch_seconds=1e-9)
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


@pytest.mark.parametrize("stretch", few([4.0, 1e-9], 1e-9), ids=["after a round", "within a round"])
def test_an_interrupted_sweep_goes_on_where_it_was(tmp_path, monkeypatch, stretch):
    """It is interrupted every few calls, in every stage, and ends with the same numbers to the bit."""
    sweep = list(tiny_world.students(2, ["owl"], train=LONG))
    sweep = [s.replace(data=s.data.replace(size=64, budget=8.0, round=16)) for s in sweep]
    settings = {"devices": 2, "lanes_a_batch": 8, "stretch_seconds": stretch}
    rounds = rounds_run(monkeypatch)
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
    for module in (batch, pace):
        monkeypatch.setattr(module, "time", types.SimpleNamespace(perf_counter=clock, monotonic=clock))
    base = tiny_world.base(steps=90, evals=2)
    done = compute([specs.Student(base, written(base), LONG, trait="owl")], tmp_path, stretch_seconds=4.5, **ALONE)
    of_base = calls[: calls.index((written(base).round, True))]
    assert of_base == [(0, True), (45, True), *[(4, False)] * 11, (1, True)]  # the first round is timed
    whole = compute([specs.Student(base, written(base), LONG, trait="owl")], tmp_path / "whole", **ALONE)
    same(done.store, whole.store, [base])


def test_a_round_that_draws_samples_is_not_cut(tmp_path, monkeypatch):
    rounds = rounds_run(monkeypatch)
    base = tiny_world.base()
    student = specs.Student(base, specs.Stream(base, FILTER), LONG)
    compute([student], tmp_path, stretch_seconds=1e-9)
    assert rounds[-1 - LONG.evals :] == [0, *[2] * LONG.evals]  # the student's


def test_the_round_in_flight_is_saved_before_the_engine_lets_go(tmp_path, monkeypatch):
    rounds = rounds_run(monkeypatch)
    student = specs.Student(tiny_world.base(), written(tiny_world.base()), LONG, trait="owl")
    with pytest.raises(Preempted):
        compute([student], tmp_path, preempted=lambda: bool(rounds))
    assert rounds == [0]
    done = compute([student], tmp_path)
    assert "cannot be used" not in done.text
    assert rounds[:2] == [0, 2]  # of the base, whose first round was not repeated


def test_a_notice_that_comes_while_a_program_is_compiled_is_heeded_before_it_runs(tmp_path, monkeypatch):
    rounds = rounds_run(monkeypatch)
    with pytest.raises(Preempted):
        compute([specs.Student(tiny_world.base(), written(tiny_world.base()), LONG)], tmp_path, preempted=lambda: True)
    assert rounds == []


@pytest.mark.parametrize("within", [False, True], ids=["after a round", "within a round"])
def test_a_checkpoint_of_time_is_used_after_a_crash(tmp_path, monkeypatch, within):
    base = tiny_world.base(steps=LONG.steps, evals=LONG.evals)
    student = specs.Student(base, written(base), LONG, trait="owl")
    whole = compute([student], tmp_path / "whole")
    fetched, fetch = [], batch.Batch._fetch

    def crashing(of, leave=0):
        fetched.extend([1] * (len(of._running) - leave))
        if len(fetched) >= 5:
            raise KeyboardInterrupt
        fetch(of, leave)

    cut = {"stretch_seconds": 1e-9} if within else {}
    with monkeypatch.context() as patch:
        patch.setattr(batch.Batch, "_fetch", crashing)
        with pytest.raises(KeyboardInterrupt):
            compute([student], tmp_path / "crashed", checkpoint_seconds=1e-9, **cut, **ALONE)
    rounds = rounds_run(monkeypatch)
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
    rounds = rounds_run(monkeypatch)
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
