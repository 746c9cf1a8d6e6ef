"""Programs that do not fit into memory."""

import jax
import orbax.checkpoint
import pytest
import tiny_world
from computing import LONG, After, compute, same
from tiny_world import TRAIN, written

from subl_jax import specs
from subl_jax.engine import lanes
from subl_jax.errors import OutOfMemory, Preempted
from subl_jax.runtime import memory

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
def test_batches_that_do_not_fit_are_halved(method, sweep, undisturbed, tmp_path, monkeypatch):
    calls = full_above(monkeypatch, 2, method)
    done = compute(sweep, tmp_path / "halved", devices=1, width=8, lanes_a_batch=8)
    assert max(calls) == 2
    assert done.statuses(sweep) == ["ok"] * len(sweep)
    same(undisturbed.store, done.store, sweep, rtol=1e-5, atol=1e-6)
    assert "distil: a batch of 5 students does not fit into memory; going on with" in done.text
    assert done.computed == undisturbed.computed
    assert {timing.layout for timing in done.timings} <= {f"1 device × 1 in turn × {width} wide" for width in (1, 2)}


def test_results_that_do_not_fit_are_computed_by_halves(sweep, undisturbed, tmp_path, monkeypatch):
    bring = lanes.own_rows

    def own_rows(tree):
        if "params" in tree and len(jax.tree.leaves(tree)[0]) > 2:
            raise jax.errors.JaxRuntimeError(FULL)
        return bring(tree)

    monkeypatch.setattr(lanes, "own_rows", own_rows)
    done = compute(sweep, tmp_path / "halved", devices=1, width=8, lanes_a_batch=8)
    assert "distil: a batch of 5 students does not fit into memory; going on with" in done.text
    same(undisturbed.store, done.store, sweep, rtol=1e-5, atol=1e-6)


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
    assert asked and "distil: a batch of 4 students does not fit into memory" in done.text
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


def test_programs_that_are_too_large_on_paper_are_not_run(sweep, undisturbed, tmp_path, monkeypatch):
    there, needed, advance = 24_000, [], lanes.Program.advance
    monkeypatch.setattr(memory, "free", lambda devices: there)

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
    same(undisturbed.store, done.store, sweep, rtol=1e-5, atol=1e-6)


def test_widths_that_cannot_fit_are_not_compiled(sweep, tmp_path, monkeypatch):
    """It follows from the first that does not: half of its lanes need at least half as much."""
    there, compiled, make = 1.0, [], lanes.compile_program

    def counted(*arguments, **options):
        program = make(*arguments, **options)
        compiled.append((arguments[0].name, program.layout.width, program.bytes_needed - program.bytes_there))
        return program

    monkeypatch.setattr(memory, "free", lambda devices: there)
    monkeypatch.setattr(lanes, "compile_program", counted)

    def tried(name, stage="distil"):
        compiled.clear()
        compute(sweep, tmp_path / name, devices=1, width=8, lanes_a_batch=8)
        return [(width, needed) for of, width, needed in compiled if of == stage]

    (widest, needed), *others = tried("none")
    assert widest > 4 and [width for width, _ in others] == [1]
    there = 0.45 * needed
    widths = [width for width, _ in tried("less than half")]
    half = -(-widest // 2)
    assert widths[0] == widest and half not in widths and widths[1] == -(-half // 2)


def test_one_lane_that_does_not_fit_is_one_line(sweep, tmp_path, monkeypatch):
    full_above(monkeypatch, 0)
    with pytest.raises(OutOfMemory, match="^pretrain: not even a batch of 1 base fits .*RESOURCE_EXHAUSTED"):
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
