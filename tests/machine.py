"""A folder in which one command, `launch/sweep.py` on the tiny sweep, is run again and again, in processes."""

import contextlib
import dataclasses
import json
import os
import pathlib
import socket
import subprocess
import sys
import time

import pandas as pd

from subl_jax.storage.store import Store

ROOT = pathlib.Path(__file__).parents[1]
TESTS = ROOT / "tests"
SWEEP = f"{TESTS / 'tiny_sweep.py'}:large"
TABLES = ("runs", "curves", "summary", "datasets")


@dataclasses.dataclass
class Machine:
    """Commands run in `folder`, with the workdir `out` in it and compiled programs in `cache`."""

    folder: pathlib.Path
    cache: pathlib.Path
    sweep: str = SWEEP

    @property
    def workdir(self):
        return self.folder / "out"

    def start(self, *arguments, log=None):
        """One process; its output goes to pipes, or both kinds of it to the file `log`."""
        # A workdir as people give it, relative; and a cache that a killed process may damage.
        command = [sys.executable, ROOT / "launch" / "sweep.py", "--config", self.sweep, "--workdir", "out", *arguments]
        path = os.pathsep.join([str(ROOT), str(TESTS)])
        env = {**os.environ, "PYTHONPATH": path, "JAX_COMPILATION_CACHE_DIR": str(self.cache)}
        with contextlib.ExitStack() as opened:
            out = opened.enter_context(open(log, "w")) if log else subprocess.PIPE
            return subprocess.Popen(
                list(map(str, command)), cwd=self.folder, env=env, stdout=out, stderr=out, text=True
            )

    def start_all(self, count, *arguments, logs=None):
        """`count` processes that are one program; one alone has no need to be told so."""
        logs = logs or [None] * count
        if count == 1:
            return [self.start(*arguments, log=logs[0])]
        where = self.cluster(count)
        return [self.start(*where, f"--process_id={i}", *arguments, log=logs[i]) for i in range(count)]

    def cluster(self, count):
        """The flags that processes of one program share."""
        with socket.socket() as free:
            free.bind(("localhost", 0))
            return f"--coordinator=localhost:{free.getsockname()[1]}", f"--num_processes={count}"

    def run(self, *arguments):
        process = self.start(*arguments)
        out, error = process.communicate(timeout=300)
        return process.returncode, out, error

    def run_all(self, count, *arguments):
        """The status, output and errors of each process, once all have ended."""
        return ended(self.start_all(count, *arguments))

    def stop_when(self, ready, number, *arguments):
        """Starts the command, and sends it a signal once `ready(workdir)`."""
        ((code, out, error),) = self.stop_one_of(1, 0, ready, number, *arguments)
        return code, out, error

    def stop_one_of(self, count, victim, ready, number, *arguments):
        processes = self.start_all(count, *arguments)
        deadline = time.monotonic() + 120
        while processes[victim].poll() is None and not ready(self.workdir) and time.monotonic() < deadline:
            time.sleep(0.005)
        processes[victim].send_signal(number)
        return ended(processes)

    def stored(self):
        return Store(self.workdir, readonly=True).done().keys() if self.workdir.exists() else set()

    def tables(self):
        return {name: pd.read_parquet(self.workdir / f"{name}.parquet") for name in TABLES}

    def computed(self):
        """How many nodes the last run computed."""
        return sum(group["lanes"] for group in json.loads((self.workdir / "sweep.json").read_text())["groups"])


def ended(processes):
    outputs = [process.communicate(timeout=300) for process in processes]
    return [(process.returncode, *output) for process, output in zip(processes, outputs, strict=True)]


def assert_complete(machine, quiet, **tolerance):
    assert_as_quiet(machine.workdir, quiet.workdir, **tolerance)


def assert_as_quiet(workdir, quiet, **tolerance):
    """The tables are those of the quiet sweep, and nothing half-done is left."""
    for name in TABLES:
        table, wanted = (pd.read_parquet(folder / f"{name}.parquet") for folder in (workdir, quiet))
        pd.testing.assert_frame_equal(table, wanted, **tolerance)
    assert not (workdir / "checkpoints").exists()
    assert not [path for path in workdir.rglob("*") if ".tmp" in path.name]
    assert sorted(path.name for path in workdir.iterdir()) == sorted(path.name for path in quiet.iterdir())
    used = {json.loads(path.read_text())["data"] for path in (workdir / "artifacts").glob("*.json")}
    assert {path.name for path in (workdir / "artifacts").glob("*.safetensors")} == used


# --- moments to send a signal at ---


def artifacts(n):
    return lambda workdir: len(list((workdir / "artifacts").glob("*.json"))) >= n


def under_way(workdir):
    """The seals of each batch that is not stored, and has a save."""
    sidecars = (workdir / "artifacts").glob("*.json")
    stored = {row["key"] for path in sidecars for row in json.loads(path.read_text())["rows"]}
    seals = []
    for folder in (workdir / "checkpoints").glob("*"):
        with contextlib.suppress(FileNotFoundError):  # they are being removed
            found = sorted(folder.glob("seals/*.json"))
            if found and not stored & set(json.loads(found[0].read_text())["meta"]["nodes"]):
                seals.append(found)
    return seals


def a_batch_after(n):
    return lambda workdir: artifacts(n)(workdir) and len(under_way(workdir)) > 0


def a_checkpoint(workdir):
    return any((workdir / "checkpoints").glob("*/seals/*.json"))


def a_second_stage_in_the_making(workdir):
    return artifacts(1)(workdir) and a_checkpoint(workdir)


def a_table(workdir):
    return (workdir / "runs.parquet").exists()
