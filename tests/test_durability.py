"""Sweeps that are killed, interrupted and damaged, as processes of their own, end with the tables of a quiet one."""

import dataclasses
import errno
import json
import os
import pathlib
import random
import shutil
import signal
import subprocess
import sys
import time

import pandas as pd
import pytest

from subl_jax.store import Store

ROOT = pathlib.Path(__file__).parents[1]
TESTS = ROOT / "tests"
SWEEP = f"{TESTS / 'tiny_sweep.py'}:large"
TABLES = ("runs", "curves", "summary", "datasets")


@dataclasses.dataclass
class Machine:
    """A folder with a workdir `out`, in which one command is run again and again."""

    folder: pathlib.Path
    cache: pathlib.Path

    @property
    def workdir(self):
        return self.folder / "out"

    def start(self, *arguments):
        # A workdir as people give it, relative; and a cache that a killed process may damage.
        command = [sys.executable, ROOT / "launch" / "sweep.py", "--config", SWEEP, "--workdir", "out", *arguments]
        path = os.pathsep.join([str(ROOT), str(TESTS)])
        env = {**os.environ, "PYTHONPATH": path, "JAX_COMPILATION_CACHE_DIR": str(self.cache)}
        return subprocess.Popen(
            list(map(str, command)), cwd=self.folder, env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )

    def run(self, *arguments):
        process = self.start(*arguments)
        out, error = process.communicate(timeout=300)
        return process.returncode, out, error

    def stop_when(self, ready, number, *arguments):
        """Starts the command, and sends it a signal once `ready(workdir)`."""
        process = self.start(*arguments)
        deadline = time.monotonic() + 120
        while process.poll() is None and not ready(self.workdir) and time.monotonic() < deadline:
            time.sleep(0.005)
        process.send_signal(number)
        out, error = process.communicate(timeout=120)
        return process.returncode, out, error

    def stored(self):
        return Store(self.workdir, readonly=True).done().keys() if self.workdir.exists() else set()

    def tables(self):
        return {name: pd.read_parquet(self.workdir / f"{name}.parquet") for name in TABLES}

    def computed(self):
        """How many nodes the last run computed."""
        return sum(group["lanes"] for group in json.loads((self.workdir / "sweep.json").read_text())["groups"])


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    folder = tmp_path_factory.mktemp("cache")
    known = os.environ["JAX_COMPILATION_CACHE_DIR"]
    if os.path.isdir(known):
        shutil.copytree(known, folder, dirs_exist_ok=True)
    return folder


@pytest.fixture(scope="module")
def quiet(tmp_path_factory, cache):
    machine = Machine(tmp_path_factory.mktemp("quiet"), cache)
    code, _, error = machine.run()
    assert (code, error) == (0, "")
    return machine


@pytest.fixture
def machine(tmp_path, quiet):
    return Machine(tmp_path, quiet.cache)


def assert_complete(machine, quiet):
    """The tables are those of the quiet sweep, to the bit, and nothing half-done is left."""
    for name, table in machine.tables().items():
        pd.testing.assert_frame_equal(table, quiet.tables()[name])
    assert not (machine.workdir / "checkpoints").exists()
    assert not [path for path in machine.workdir.rglob("*") if ".tmp" in path.name]
    assert sorted(path.name for path in machine.workdir.iterdir()) == sorted(p.name for p in quiet.workdir.iterdir())
    artifacts = machine.workdir / "artifacts"
    used = {json.loads(path.read_text())["data"] for path in artifacts.glob("*.json")}
    assert {path.name for path in artifacts.glob("*.safetensors")} == used


def artifacts(n):
    return lambda workdir: len(list((workdir / "artifacts").glob("*.json"))) >= n


def a_checkpoint(workdir):
    return any((workdir / "checkpoints").glob("*/seals/*.json"))


def a_second_stage_in_the_making(workdir):
    return artifacts(1)(workdir) and a_checkpoint(workdir)


def a_table(workdir):
    return (workdir / "runs.parquet").exists()


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


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(3))
def test_sweeps_killed_at_random_end_as_if_nothing_had_been(machine, quiet, seed):
    rng, kills = random.Random(seed), 0
    for _ in range(8):
        moment = time.monotonic() + rng.uniform(0.5, 6.0)
        code, _, _ = machine.stop_when(lambda _, moment=moment: time.monotonic() > moment, signal.SIGKILL)
        kills += code == -signal.SIGKILL
    assert kills > 0
    before = set(machine.stored())
    code, _, error = machine.run()
    assert (code, error) == (0, "")
    assert_complete(machine, quiet)
    assert machine.computed() == len(machine.stored()) - len(before)


# --- SIGTERM ---


@pytest.mark.parametrize("number", [signal.SIGTERM, pytest.param(signal.SIGINT, marks=pytest.mark.slow)])
def test_a_preempted_sweep_says_so_and_goes_on(machine, quiet, number):
    code, _, error = machine.stop_when(a_second_stage_in_the_making, number)
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
