"""Weights & Biases, one run per student and one of the sweep's own; or nothing.

A fault of the tracker never stops or slows a sweep.
"""

import atexit
import contextlib
import os
import pathlib
import queue
import shlex
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import numpy as np
import pandas as pd

from subl_jax.engine.observers import NoTracker, RunInfo, Tracker
from subl_jax.errors import InputError
from subl_jax.tracking import wandb_faults, wandb_place
from subl_jax.tracking.ledger import Ledger
from subl_jax.tracking.wandb_client import Client, OpenRun, stop_client
from subl_jax.tracking.wandb_place import Place, files_folder, local_folder

# A client that stands still must not fill the memory of a long sweep.
_BACKLOG_BYTES = 256 * 2**20
_TASK_BYTES = 4096


class Waits(NamedTuple):
    """How long the tracker waits, in seconds, none of it in the sweep's own thread but `drain`.

    init: for the server to take a run. finish: for a run's rows to arrive. again: before an unreachable server is
    tried again. drain: at the end of the sweep, for all that is left.
    """

    init: float = 20.0
    finish: float = 30.0
    again: float = 60.0
    drain: float = 60.0


def make_tracker(
    kind: str,
    *,
    workdir: str | os.PathLike[str],
    project: str,
    warn: Callable[[str], None],
) -> Tracker:
    """The tracker called `kind`: "none" or "wandb".

    `project` is PROJECT or ENTITY/PROJECT; "" means WANDB_PROJECT, or else subl_jax. `warn` takes one line and may be
    called from another thread. WANDB_MODE, WANDB_DISABLED, WANDB_ENTITY and WANDB_DIR are respected; without a mode,
    runs go online exactly where a W&B login is found.

    Raises:
      InputError: another kind, a WANDB_MODE that W&B does not have, or a project's name that it refuses.
    """
    if kind not in ("none", "wandb"):
        raise InputError(f"tracker = {kind!r}: one of none, wandb")
    if kind == "none" or wandb_place.mode(os.environ) == "disabled":
        return NoTracker()
    place = wandb_place.place(project, os.environ, "config.project")
    own, token = local_folder(workdir), wandb_place.workdir_token(workdir)
    return WandbTracker(
        place, files_folder(workdir, os.environ), token, ledger=own / "wandb" / "delivered.txt", warn=warn
    )


class WandbTracker(Tracker):
    """Hands every call to one background thread, the only place that touches the W&B client.

    A run that the server refuses is written offline and concerns no other. A server out of reach turns the runs
    offline until it is back. A run that meets another fault goes quiet, and so does all tracking when the client
    cannot start at all. The first fault is said in one line, the rest are counted in `close`.

    Args:
      folder: its folder `wandb` gets the client's files.
      token: what ends the ids of runs, so that they are this workdir's own.
      ledger: the file of runs that have been delivered.
      clock: seconds that only grow.
    """

    def __init__(
        self,
        place: Place,
        folder: pathlib.Path,
        token: str,
        *,
        ledger: pathlib.Path,
        warn: Callable[[str], None],
        waits: Waits | None = None,
        clock: Callable[[], float] = time.monotonic,
        backlog_bytes: int = _BACKLOG_BYTES,
    ):
        self._place = place
        self._folder = folder
        self._token = token
        self._warn = warn
        self._waits = waits or Waits()
        self._clock = clock
        self._backlog_bytes = backlog_bytes
        self._lock = threading.Lock()
        self._warned: set[str] = set()
        self._closed = False
        self._pending_bytes = 0
        self._asked: set[str] = set()
        self._lost: set[str] = set()
        self._off = False
        # Only the worker uses those below.
        self._client: Client | None = None
        self._runs: dict[str, OpenRun] = {}
        self._late: dict[str, int] = {}  # ended while the server was out of reach, with their exit codes
        self._down_since: float | None = None
        self._opened_any = False
        self._stuck = False  # the client waits for a run that it could not open
        self._url: str | None = None
        try:
            self._ledger = Ledger(ledger)
        except OSError as error:
            self._ledger = None
            self._off = True
            self._say_once("off", f"W&B tracking is off: {_line(error)}")
        self._tasks: queue.SimpleQueue[tuple[str, int, Callable[[], None]] | None] = queue.SimpleQueue()
        self._worker = threading.Thread(target=self._work, name="wandb", daemon=True)
        self._worker.start()

    def start(self, run: RunInfo) -> None:
        self._asked.add(run.run_id)
        self._submit(run.run_id, _TASK_BYTES, lambda: self._start(run))

    def log(self, run_id: str, steps: Sequence[int], metrics: Mapping[str, np.ndarray]) -> None:
        # Copies: the caller may reuse its buffers before the worker reads them.
        columns = {name: np.array(values, dtype=float) for name, values in metrics.items()}
        rows = [int(step) for step in steps]
        size = _TASK_BYTES + 8 * len(rows) + sum(column.nbytes for column in columns.values())
        self._submit(run_id, size, lambda: self._runs[run_id].log(rows, columns))

    def show(self, run_id: str, tables: Mapping[str, pd.DataFrame], images: Mapping[str, bytes]) -> None:
        tables, images = dict(tables), dict(images)
        size = _TASK_BYTES + sum(map(len, images.values()))
        size += sum(int(table.memory_usage(deep=True).sum()) for table in tables.values())
        self._submit(run_id, size, lambda: self._show(run_id, tables, images))

    def finish(self, run_id: str, summary: Mapping[str, float | str], exit_code: int = 0) -> None:
        summary = dict(summary)
        self._submit(run_id, _TASK_BYTES, lambda: self._finish(run_id, summary, exit_code))

    def delivered(self) -> frozenset[str]:
        return self._ledger.ids() if self._ledger else frozenset()

    def close(self) -> list[str]:
        self._tasks.put(None)
        self._worker.join(self._waits.drain)
        self._closed = True
        lines = [f"W&B: {self._url}"] if self._url else []
        files = self._folder / "wandb"
        if any(files.glob("offline-run-*")):
            lines.append(f"wandb sync {shlex.quote(str(files))}")
        if self._worker.is_alive():
            lines.append(f"W&B: still busy after {self._waits.drain:g} s, stopped waiting")
        if self._worker.is_alive() or self._stuck or self._late or self._runs:
            # Registered after the client's own, so that it runs before it.
            atexit.register(stop_client)
        missing = sorted(self._asked - self.delivered())
        if missing:
            some = ", ".join(missing[:3]) + (", …" if len(missing) > 3 else "")
            lines.append(f"W&B: {len(missing)} of {len(self._asked)} runs are not complete there: {some}")
        return lines

    def _id(self, run_id: str) -> str:
        return f"{run_id}-{self._token}"

    def _submit(self, run_id: str, size: int, act: Callable[[], None]) -> None:
        with self._lock:
            if self._off or run_id in self._lost:
                return
            full = self._pending_bytes + size > self._backlog_bytes
            if full:
                self._lost.add(run_id)
            else:
                self._pending_bytes += size
        if full:
            self._say_once("full", "W&B does not keep up: what it cannot take is left out")
        else:
            self._tasks.put((run_id, size, act))

    def _say_once(self, kind: str, line: str) -> None:
        """Warns, unless there was a warning of this kind before."""
        with self._lock:
            silent = kind in self._warned or self._closed
            self._warned.add(kind)
        if not silent:
            self._warn(line)

    # --- the worker thread ---

    def _work(self) -> None:
        while (task := self._tasks.get()) is not None:
            run_id, size, act = task
            if not self._off and run_id not in self._lost:
                try:
                    act()
                except Exception as error:
                    self._lose(run_id, error)
            with self._lock:
                self._pending_bytes -= size
        if self._late:
            # One more try to end a run whose server was out of reach, and where it succeeds the others.
            self._down_since = None
            self._end_late()
        for run_id in list(self._runs):
            if self._down_since is None or not self._runs[run_id].online:
                # Unfinished (the sweep was stopped): not in the ledger, so that a resumed sweep sends them whole.
                with contextlib.suppress(Exception):
                    self._runs.pop(run_id).end(exit_code=1)

    def _lose(self, run_id: str, error: Exception) -> None:
        with self._lock:
            self._lost.add(run_id)
            self._off = not self._opened_any
        if self._off:
            self._say_once("off", f"W&B tracking is off: {_line(error)}")
        else:
            self._say_once("lost", f"W&B lost run {run_id}: {_line(error)}")
        opened = self._runs.pop(run_id, None)
        if opened is not None:
            with contextlib.suppress(Exception):
                opened.end(exit_code=1)

    def _start(self, info: RunInfo) -> None:
        if self._client is None:
            self._client = Client(self._place, self._folder, init=self._waits.init, finish=self._waits.finish)
        waiting = self._down_since is not None and self._clock() - self._down_since < self._waits.again
        online = self._client.online and not waiting
        try:
            opened = self._client.open(info, self._id(info.run_id), online)
        except Exception as error:
            if not online or wandb_faults.of_client(error):
                raise
            if wandb_faults.of_network(error):
                self._down(error)
            else:
                self._say_once("refused", f"W&B refuses run {info.run_id}, it is written offline: {_line(error)}")
            # The client still holds the name of the run that it could not open.
            opened = self._client.open(info, f"{self._id(info.run_id)}-offline", online=False)
            self._stuck = True
        self._opened_any = True
        self._runs[info.run_id] = opened
        if opened.online:
            self._url = opened.project_url
            self._back()

    def _down(self, error: Exception) -> None:
        if self._down_since is None:
            self._warned.discard("back")
            self._say_once("down", f"W&B is out of reach, runs are written offline until it is back: {_line(error)}")
        self._down_since = self._clock()

    def _back(self) -> None:
        """The server has answered: runs that ended meanwhile end there too."""
        if self._down_since is None:
            return
        self._down_since = None
        self._warned.discard("down")
        self._say_once("back", "W&B is within reach again")
        self._end_late()

    def _end_late(self) -> None:
        for run_id, exit_code in list(self._late.items()):
            if self._down_since is None:
                del self._late[run_id]
                try:
                    self._end(run_id, exit_code)
                except Exception as error:
                    self._lose(run_id, error)

    def _show(self, run_id: str, tables: dict[str, pd.DataFrame], images: dict[str, bytes]) -> None:
        for name, table in tables.items():
            if self._url and "run_id" in table:
                tables[name] = table.assign(link=[f"{self._url}/runs/{self._id(each)}" for each in table["run_id"]])
        self._runs[run_id].show(tables, images)

    def _finish(self, run_id: str, summary: dict[str, float | str], exit_code: int) -> None:
        opened = self._runs[run_id]
        opened.summarise(summary)
        if opened.online and self._down_since is not None:
            # The client keeps trying; nobody waits for it.
            self._late[run_id] = exit_code
        else:
            self._end(run_id, exit_code)

    def _end(self, run_id: str, exit_code: int) -> None:
        opened = self._runs.pop(run_id)
        try:
            refused = opened.end(exit_code)
        except TimeoutError as error:
            self._down(error)
            with self._lock:
                self._lost.add(run_id)
            return
        if refused:
            self._say_once("refused", f"W&B refuses run {run_id}, it is not complete there: {refused}")
            with self._lock:
                self._lost.add(run_id)
        else:
            self._ledger.add(run_id)


def _line(error: BaseException) -> str:
    return next(iter(str(error).splitlines()), "") or type(error).__name__
