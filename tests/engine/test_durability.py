"""Sweeps that are killed, interrupted and damaged, as processes of their own, end with the tables of a quiet one."""

import errno
import json
import os
import random
import shutil
import signal
import subprocess

import pytest
from machine import Machine, assert_complete, ended
from moments import Stops, at, nth


@pytest.fixture(scope="module")
def quiet(tmp_path_factory):
    """A sweep that nothing disturbs; what it compiles is there for the processes of all tests."""
    machine = Machine(tmp_path_factory.mktemp("quiet"), None)
    code, _, error = machine.here()
    assert (code, error) == (0, "")
    return machine


@pytest.fixture
def machine(tmp_path, quiet, programs):
    return Machine(tmp_path, programs)


# --- stopped and started ---

REFUSED = "error: --workdir out: another sweep is running in it; wait for it or use another --workdir\n"
STOPPED = "preempted: what was computed is stored; run the same command again to go on\n"


def test_a_sweep_that_is_killed_then_preempted_ends_as_if_nothing_had_been(machine, quiet):
    """Meanwhile a second one in its workdir is refused, and harms nothing."""
    code, _, _ = machine.stop_at(at("saved", stage="instil", save=1), signal.SIGKILL)
    assert code == -signal.SIGKILL
    with Stops(at("saved", stage="distil", batch=2)) as stops:
        process = machine.start(stops=stops)
        stop = stops.next(process)
        assert machine.here() == (2, "", REFUSED)
        stop.send(signal.SIGTERM)
        ((code, _, error),) = ended([process])
    assert (code, error) == (75, STOPPED)
    assert not (machine.workdir / "sweep.json").exists()
    saves = list((machine.workdir / "checkpoints").glob("*/saves/*"))
    assert saves and all(path.name.isdigit() for path in saves)
    before = set(machine.stored())
    code, out, error = machine.here()
    assert (code, error) == (0, "")
    assert "cannot be used" not in out
    assert_complete(machine, quiet)
    # What was finished was not computed again.
    assert machine.computed() == len(machine.stored()) - len(before) < len(quiet.stored())


@pytest.mark.slow
@pytest.mark.parametrize(
    "moments",
    [
        (at("saved", stage="pretrain", save=1), at("saved", stage="instil", save=1)),
        (at("stored", stage="distil", put=1), at("written", file="runs.parquet")),
    ],
    ids=["early", "late"],
)
def test_killed_sweeps_end_as_if_nothing_had_been(machine, quiet, moments):
    for moment in moments:
        code, _, _ = machine.stop_at(moment, signal.SIGKILL)
        assert code == -signal.SIGKILL
        assert not (machine.workdir / "sweep.json").exists()
    before = set(machine.stored())
    code, _, error = machine.run()
    assert (code, error) == (0, "")
    assert_complete(machine, quiet)
    assert machine.computed() == len(machine.stored()) - len(before) < len(quiet.stored())


# --- at random ---


def _signalled_at_random(machine, rng):
    """Starts one to three processes, sends kill -9 or SIGTERM to one or all at a random moment; says whether it came.

    A moment that a short rest of a sweep does not come to is none.
    """
    count, number = rng.choice((1, 1, 2, 2, 3)), rng.choice((signal.SIGKILL, signal.SIGTERM))
    victim = rng.randrange(count)
    others = [] if rng.random() < 0.7 else [i for i in range(count) if i != victim]
    # A save after every round, or a step at a time and none but when told to stop.
    cut = rng.choice(((), ("--config.engine.stretch_seconds=1e-6", "--config.engine.checkpoint_seconds=600")))
    moment = nth(rng.randrange(1, 420 if cut else 140), **({"process": victim} if count > 1 else {}))
    with Stops(moment) as stops:
        processes = machine.start_all(count, *cut, stops=stops)
        stop = stops.next_or_end(*processes)
        if stop:
            victims = [stop.pid, *(processes[i].pid for i in others)]
            for i in others:
                processes[i].send_signal(number)
            stop.send(number)
        done = ended(processes)
    hit = [process.pid in victims for process in processes] if stop else [False] * count
    print(f"\n{number.name} to {hit} at {stop}{' by steps' if cut else ''}: {[code for code, *_ in done]}", end="")
    for (code, out, error), struck in zip(done, hit, strict=True):
        # SIGTERM kills a process that has not begun; one that has told all results ends well.
        assert code in ((0, 75, -number) if struck else (0, 75)), out + error
    return stop is not None


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(12))
def test_sweeps_stopped_at_random_end_as_if_nothing_had_been(machine, quiet, seed):
    """Five stops each, sixty in all, of one to three processes: the next start has another number of them."""
    rng, stops = random.Random(seed), 0
    while stops < 5:
        stops += _signalled_at_random(machine, rng)
        if (machine.workdir / "sweep.json").exists():
            assert_complete(machine, quiet)
            shutil.rmtree(machine.workdir)
    before = set(machine.stored())
    code, _, error = machine.run()
    assert (code, error) == (0, "")
    assert_complete(machine, quiet)
    assert machine.computed() == len(machine.stored()) - len(before)


@pytest.mark.slow
def test_a_sweep_interrupted_at_the_keyboard_goes_on(machine, quiet):
    code, _, error = machine.stop_at(at("saved", stage="distil", batch=2), signal.SIGINT)
    assert (code, error) == (75, STOPPED)
    code, out, error = machine.run()
    assert (code, error) == (0, "")
    assert "cannot be used" not in out
    assert_complete(machine, quiet)


# --- damage ---


def test_damaged_artefacts_are_said_so_and_computed_again(machine, quiet):
    shutil.copytree(quiet.workdir, machine.workdir)
    sidecars = {path: json.loads(path.read_text()) for path in (machine.workdir / "artifacts").glob("*.json")}
    students = [path for path, sidecar in sidecars.items() if sidecar["stage"] == "distil"]
    data = students[0].parent / sidecars[students[0]]["data"]
    data.write_bytes(data.read_bytes()[:-100])
    students[1].write_text("{")
    lost = sum(len(sidecars[path]["rows"]) for path in students[:2])
    code, out, error = machine.here()
    assert (code, error) == (0, "")
    assert out.count("is damaged") == 2 and "computed again" in out
    assert machine.computed() == lost
    assert_complete(machine, quiet)
    assert machine.here()[1].count("damaged") == 0


# --- a full disk ---


@pytest.fixture
def small_disk(machine):
    """A file system of a quarter megabyte at the workdir, where this process may mount one."""
    machine.workdir.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=256k", "tmpfs", machine.workdir]
    if os.geteuid() != 0 or shutil.which("mount") is None or subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("needs the right to mount a small file system")
    yield machine
    subprocess.run(["umount", machine.workdir], check=True)


@pytest.mark.slow  # in a process of its own, on a disk of its own; tests/app/test_running.py has the same here
def test_a_full_disk_is_one_line_and_what_is_stored_is_kept(small_disk):
    arguments = ("--config.data=4096", "--config.engine.checkpoint_seconds=600")
    code, _, error = small_disk.run(*arguments)
    assert code == 1
    assert error.startswith("error: cannot write out/") and error.count("\n") == 1
    assert os.strerror(errno.ENOSPC) in error and error.count("what is stored is kept") == 1
    before = set(small_disk.stored())
    assert len(before) > 0
    assert small_disk.run(*arguments)[0] == 1
    assert before <= set(small_disk.stored())
