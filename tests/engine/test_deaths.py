"""Batches that die with their process. A death is played by `PeerLost`, after which nothing is tidied up."""

import pytest
from computing import compute, same
from etils import epath

from subl_jax.engine import batch, deaths, lanes
from subl_jax.errors import OutOfMemory, PeerLost
from subl_jax.runtime.kills import Kills

WIDE = {"devices": 1, "width": 8, "lanes_a_batch": 8}


class Machine:
    """Whose students die in batches of more than `most`; `kills` says what its system has counted so far."""

    def __init__(self, monkeypatch, most):
        self.most, self.batches, self.kills = most, [], Kills("a machine", 0)
        self._train = batch.Batch._train
        monkeypatch.setattr(batch.Batch, "_train", lambda *arguments: self.train(*arguments))
        monkeypatch.setattr(deaths.Kills, "so_far", lambda: self.kills)

    def train(self, running, arguments, state):
        if running._group.stage.name == "distil":
            self.batches.append(running._program.layout.lanes)
            if self.batches[-1] > self.most:
                raise PeerLost("killed")
        return self._train(running, arguments, state)


def killed(sweep, workdir, machine, kills):
    """A run that dies; the next one is on a machine with this count."""
    with pytest.raises(PeerLost):
        compute(sweep, workdir, **WIDE)
    machine.kills = kills


def test_a_batch_that_was_killed_for_its_memory_is_halved_at_the_next_start(sweep, undisturbed, tmp_path, monkeypatch):
    machine = Machine(monkeypatch, most=2)
    killed(sweep, tmp_path / "out", machine, Kills("a machine", 1))
    killed(sweep, tmp_path / "out", machine, Kills("a machine", 2))
    # A third start begins where the second has died, and halves again.
    done = compute(sweep, tmp_path / "out", **WIDE)
    assert machine.batches[:2] == [5, 3] and set(machine.batches[2:]) <= {1, 2}
    assert "distil: a batch of 3 students does not fit into memory; going on with 2" in done.text
    assert done.statuses(sweep) == ["ok"] * len(sweep)
    same(undisturbed.store, done.store, sweep, rtol=1e-5, atol=1e-6)
    assert not (tmp_path / "out" / "running").exists()


def test_a_machine_that_cannot_tell_is_believed_at_the_second_death(sweep, tmp_path, monkeypatch):
    machine = Machine(monkeypatch, most=3)
    for i in range(2):
        killed(sweep, tmp_path, machine, Kills(f"machine {i}", 0))
    compute(sweep, tmp_path, **WIDE)
    assert machine.batches[:3] == [5, 5, 3] and max(machine.batches[3:], default=0) <= 3


def test_deaths_for_other_reasons_leave_the_batch_as_it_is(sweep, tmp_path, monkeypatch):
    machine = Machine(monkeypatch, most=0)
    for _ in range(3):
        killed(sweep, tmp_path, machine, machine.kills)
    machine.most = 8
    compute(sweep, tmp_path, **WIDE)
    assert machine.batches == [5] * 5  # ten students, the first five of them four times


def test_a_smallest_batch_that_is_killed_ends_the_sweep_and_may_be_tried_again(sweep, tmp_path, monkeypatch):
    machine = Machine(monkeypatch, most=0)
    with pytest.raises(PeerLost):
        compute(sweep, tmp_path, devices=1, lanes_a_batch=1)
    machine.kills = Kills("a machine", 1)
    with pytest.raises(OutOfMemory, match="distil: not even a batch of 1 student fits into memory .the system killed"):
        compute(sweep, tmp_path, devices=1, lanes_a_batch=1)
    machine.most = 8
    assert compute(sweep, tmp_path, devices=1, lanes_a_batch=1).statuses(sweep) == ["ok"] * len(sweep)


def test_a_save_is_progress(sweep, tmp_path, monkeypatch):
    monkeypatch.setattr(deaths.Kills, "so_far", lambda: Kills("", None))
    notes = deaths.Deaths(epath.Path(tmp_path))

    def dies(saves):
        with pytest.raises(PeerLost), notes.noticed("form", sweep, lanes.Layout(1, 2, 2)):
            if saves:
                notes.saved()
            raise PeerLost

    for _ in range(4):
        dies(saves=True)
    dies(saves=False)
    with pytest.raises(OutOfMemory), notes.noticed("form", sweep, lanes.Layout(1, 2, 2)):
        pass
    assert notes.most("form") == 3 and notes.most("another") is None
