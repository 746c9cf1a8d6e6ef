"""Batches are written behind the next ones."""

import threading

import pytest
import tiny_world
from computing import ALONE, FakeTracker, compute, rounds_run

from subl_jax.engine import lanes
from subl_jax.errors import StorageError
from subl_jax.storage.store import Store


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
    rounds = rounds_run(monkeypatch)
    assert list((tmp_path / "checkpoints").glob("*/saves/*"))
    done = compute(list(tiny_world.students())[:1], tmp_path, tracker)
    assert rounds[0] != 0  # not from its start
    assert done.statuses(list(tiny_world.students())[:1]) == ["ok"] and len(tracker.finished) == 1
