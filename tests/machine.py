"""A folder in which one command, `launch/sweep.py` on the tiny sweep, is run again and again, in processes."""

import contextlib
import dataclasses
import io
import json
import os
import pathlib
import socket
import subprocess
import sys

import pandas as pd
from moments import PATIENCE, Stops

from subl_jax.app import cli
from subl_jax.storage.store import Store

ROOT = pathlib.Path(__file__).parents[1]
TESTS = ROOT / "tests"
SWEEP = f"{TESTS / 'tiny_sweep.py'}:large"
TABLES = ("runs", "curves", "summary", "comparisons", "datasets")


@dataclasses.dataclass
class Machine:
    """Commands run in `folder`, with the workdir `out` in it and compiled programs in `cache`."""

    folder: pathlib.Path
    cache: pathlib.Path
    sweep: str = SWEEP

    @property
    def workdir(self):
        return self.folder / "out"

    def start(self, *arguments, log=None, stops=None):
        """One process; its output goes to pipes, or both kinds of it to the file `log`."""
        # A workdir as people give it, relative; and a cache that a killed process may damage.
        command = [sys.executable, ROOT / "launch" / "sweep.py", "--config", self.sweep, "--workdir", "out", *arguments]
        path = os.pathsep.join([str(ROOT), str(TESTS)])
        env = {**os.environ, "PYTHONPATH": path, "JAX_COMPILATION_CACHE_DIR": str(self.cache)}
        env |= stops.environment if stops else {}
        with contextlib.ExitStack() as opened:
            out = opened.enter_context(open(log, "w")) if log else subprocess.PIPE
            return subprocess.Popen(
                list(map(str, command)), cwd=self.folder, env=env, stdout=out, stderr=out, text=True
            )

    def start_all(self, count, *arguments, logs=None, stops=None):
        """`count` processes that are one program; one alone has no need to be told so."""
        logs = logs or [None] * count
        if count == 1:
            return [self.start(*arguments, log=logs[0], stops=stops)]
        where = self.cluster(count)
        own = [(*where, f"--process_id={i}", *arguments) for i in range(count)]
        return [self.start(*each, log=log, stops=stops) for each, log in zip(own, logs, strict=True)]

    def cluster(self, count):
        """The flags that processes of one program share."""
        with socket.socket() as free:
            free.bind(("localhost", 0))
            return f"--coordinator=localhost:{free.getsockname()[1]}", f"--num_processes={count}"

    def run(self, *arguments):
        process = self.start(*arguments)
        out, error = process.communicate(timeout=PATIENCE)
        return process.returncode, out, error

    def here(self, *arguments):
        """The same command in this process, which has compiled and imported what it needs."""
        out, error = io.StringIO(), io.StringIO()
        self.folder.mkdir(exist_ok=True)
        with contextlib.chdir(self.folder), contextlib.redirect_stdout(out), contextlib.redirect_stderr(error):
            code = cli.main(["--config", self.sweep, "--workdir", "out", *map(str, arguments)])
        return code, out.getvalue(), error.getvalue()

    def run_all(self, count, *arguments):
        """The status, output and errors of each process, once all have ended."""
        return ended(self.start_all(count, *arguments))

    def stop_at(self, moment, number, *arguments):
        """Starts the command, and sends it a signal at the moment. Gives its status, output and errors."""
        (done,) = self.stop_one_of(1, moment, number, *arguments)
        return done

    def stop_one_of(self, count, moment, number, *arguments):
        """The same with `count` processes, of which the first to come to the moment gets the signal."""
        with Stops(moment) as stops:
            processes = self.start_all(count, *arguments, stops=stops)
            stops.next(*processes).send(number)
            return ended(processes)

    def stored(self):
        return Store(self.workdir, readonly=True).done().keys() if self.workdir.exists() else set()

    def tables(self):
        return {name: pd.read_parquet(self.workdir / f"{name}.parquet") for name in TABLES}

    def computed(self):
        """How many nodes the last run computed."""
        return sum(group["lanes"] for group in json.loads((self.workdir / "sweep.json").read_text())["groups"])


def ended(processes):
    outputs = [process.communicate(timeout=PATIENCE) for process in processes]
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
