"""Sweeps that are killed, interrupted and damaged, as processes of their own, end with the tables of a quiet one."""

import errno
import json
import os
import random
import shutil
import signal
import subprocess
import time

import pytest
from machine import (
    Machine,
    a_batch_after,
    a_checkpoint,
    a_second_stage_in_the_making,
    a_table,
    artifacts,
    assert_complete,
)


@pytest.fixture(scope="module")
def quiet(tmp_path_factory, programs):
    machine = Machine(tmp_path_factory.mktemp("quiet"), programs)
    code, _, error = machine.run()
    assert (code, error) == (0, "")
    return machine


@pytest.fixture
def machine(tmp_path, quiet):
    return Machine(tmp_path, quiet.cache)


# --- kill -9 ---


@pytest.mark.parametrize(
    "moments",
    [(a_checkpoint, a_second_stage_in_the_making), (artifacts(5), a_table)],
    ids=["early", "late"],
)
def test_killed_sweeps_end_as_if_nothing_had_been(machine, quiet, moments):
    for moment in moments:
        code, _, _ = machine.stop_when(moment, signal.SIGKILL)
        assert code == -signal.SIGKILL
        assert not (machine.workdir / "sweep.json").exists()
    before = set(machine.stored())
    code, _, error = machine.run()
    assert (code, error) == (0, "")
    assert_complete(machine, quiet)
    # What was finished was not computed again.
    assert machine.computed() == len(machine.stored()) - len(before) < len(quiet.stored())


# --- at random ---


def _signalled_at_random(machine, rng, longest):
    """Starts one to three processes, sends kill -9 or SIGTERM to one or all at a random time; says what happened."""
    count, number = rng.choice((1, 1, 2, 2, 3)), rng.choice((signal.SIGKILL, signal.SIGTERM))
    victims = [rng.randrange(count)] if rng.random() < 0.7 else list(range(count))
    logs = [machine.folder / f"{i}.log" for i in range(count)]
    # A save after every round, or a step at a time and one where half a second has passed.
    cut = rng.choice(((), ("--config.engine.stretch_seconds=1e-6", "--config.engine.checkpoint_seconds=0.5")))
    processes = machine.start_all(count, *cut, logs=logs)
    time.sleep(rng.uniform(0.5, longest))
    hit = [i for i in victims if processes[i].poll() is None]
    for i in hit:
        processes[i].send_signal(number)
    began = time.monotonic()
    while any(process.poll() is None for process in processes):
        # Processes that were still waiting for one another to come are stopped by whoever started them.
        if hit and time.monotonic() - began > 40:
            for process in processes:
                process.kill()
        assert time.monotonic() - began < 300
        time.sleep(0.02)
    codes = [process.wait() for process in processes]
    groups = [line for line in logs[0].read_text().splitlines() if line.startswith("[") and "/" in line[:4]]
    stage = groups[-1].split()[1].rstrip(":") if groups else "start"
    print(f"\n{number.name} to {hit} of {count} in {stage}{' by steps' if cut else ''}: {codes} ", end="")
    print(f"after {time.monotonic() - began:.1f} s", end="")
    for i, code in enumerate(codes):
        # SIGTERM kills a process that has not begun; one that has told all results ends well.
        assert code in ((0, 75, -number) if i in hit else (0, 75, -signal.SIGKILL)), logs[i].read_text()
    return len(hit) > 0


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(12))
def test_sweeps_stopped_at_random_end_as_if_nothing_had_been(machine, quiet, seed):
    """Five stops each, sixty in all, of one to three processes: the next start has another number of them."""
    rng, stops = random.Random(seed), 0
    while stops < 5:
        stops += _signalled_at_random(machine, rng, 12.0)
        if (machine.workdir / "sweep.json").exists():
            assert_complete(machine, quiet)
            shutil.rmtree(machine.workdir)
    before = set(machine.stored())
    code, _, error = machine.run()
    assert (code, error) == (0, "")
    assert_complete(machine, quiet)
    assert machine.computed() == len(machine.stored()) - len(before)


# --- SIGTERM ---


@pytest.mark.parametrize("number", [signal.SIGTERM, pytest.param(signal.SIGINT, marks=pytest.mark.slow)])
def test_a_preempted_sweep_says_so_and_goes_on(machine, quiet, number):
    code, _, error = machine.stop_when(a_batch_after(5), number)  # the second one of students
    assert code == 75
    assert error == "preempted: what was computed is stored; run the same command again to go on\n"
    saves = list((machine.workdir / "checkpoints").glob("*/saves/*"))
    assert saves and all(path.name.isdigit() for path in saves)
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
    code, out, error = machine.run()
    assert (code, error) == (0, "")
    assert out.count("is damaged") == 2 and "computed again" in out
    assert machine.computed() == lost
    assert_complete(machine, quiet)
    assert machine.run()[1].count("damaged") == 0


# --- two at once ---


def test_a_second_sweep_in_the_same_workdir_is_refused_and_the_first_goes_on(machine, quiet):
    first = machine.start()
    deadline = time.monotonic() + 120
    while not a_checkpoint(machine.workdir) and time.monotonic() < deadline:
        time.sleep(0.005)
    code, out, error = machine.run()
    assert (code, out) == (2, "")
    assert error == "error: --workdir out: another sweep is running in it; wait for it or use another --workdir\n"
    first.communicate(timeout=300)
    assert first.returncode == 0
    assert_complete(machine, quiet)


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
