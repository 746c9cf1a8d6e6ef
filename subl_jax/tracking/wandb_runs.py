"""Weights & Biases, one run per student and one of the sweep's own; or nothing.

A fault of the tracker never stops or slows a sweep.
"""

import atexit
import contextlib
import hashlib
import importlib
import os
import pathlib
import queue
import shlex
import sys
import tempfile
import threading
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from subl_jax.engine.observers import NoTracker, RunInfo, Tracker
from subl_jax.errors import InputError
from subl_jax.tracking.ledger import Ledger

STEP = "student/step"

# A client that stands still must not fill the memory of a long sweep.
_BACKLOG_BYTES = 256 * 2**20
_TASK_BYTES = 4096

_MODES = {
    "online": "online",
    "run": "online",
    "shared": "online",
    "offline": "offline",
    "dryrun": "offline",
    "disabled": "disabled",
}


def make_tracker(
    kind: str,
    *,
    workdir: str | os.PathLike[str],
    project: str,
    entity: str | None = None,
    warn: Callable[[str], None],
) -> Tracker:
    """The tracker called `kind`: "none" or "wandb".

    `warn` takes one line and may be called from another thread. WANDB_MODE is respected; without it, runs go
    online exactly where a W&B login is found.

    Raises:
      InputError: another kind, or a WANDB_MODE that W&B does not have.
    """
    if kind not in ("none", "wandb"):
        raise InputError(f"tracker = {kind!r}: one of none, wandb")
    mode = os.environ.get("WANDB_MODE", "")
    if mode and mode not in _MODES:
        raise InputError(f"WANDB_MODE = {mode!r}: one of {', '.join(_MODES)}")
    if kind == "none" or _MODES.get(mode) == "disabled":
        return NoTracker()
    return WandbTracker(project=project, entity=entity, folder=local_folder(workdir), warn=warn)


def local_folder(workdir: str | os.PathLike[str]) -> pathlib.Path:
    """Where W&B may write: `workdir` itself, or for remote storage a folder of this machine that belongs to it."""
    path = os.fspath(workdir)
    if "://" not in path:
        return pathlib.Path(path)
    return pathlib.Path(tempfile.gettempdir()) / f"subl_jax-{hashlib.sha256(path.encode()).hexdigest()[:12]}"


def wandb_mode(environ: Mapping[str, str], logged_in: Callable[[], bool]) -> str:
    """ "online" or "offline". Online always needs a login, since the client would otherwise stop to ask for one."""
    if _MODES.get(environ.get("WANDB_MODE", ""), "online") == "offline":
        return "offline"
    return "online" if logged_in() else "offline"


def _logged_in(wandb: Any) -> bool:
    """Whether credentials lie ready: in the environment, in W&B's settings, or in netrc. Asks no server."""
    if os.environ.get("WANDB_API_KEY") or os.environ.get("WANDB_IDENTITY_TOKEN_FILE"):
        return True
    settings = wandb.setup().settings
    wbauth = importlib.import_module("wandb.sdk.lib.wbauth")
    return bool(settings.api_key or wbauth.read_netrc_auth(host=settings.base_url))


class WandbTracker(Tracker):
    """Hands every call to one background thread, the only place that touches the W&B client.

    A run that meets a fault goes quiet, and so does all tracking when the client cannot start at all; the first
    fault is said in one line, the rest are counted in `close`. A server out of reach turns the sweep offline.
    """

    def __init__(
        self,
        *,
        project: str,
        entity: str | None,
        folder: pathlib.Path,
        warn: Callable[[str], None],
        drain_seconds: float = 60.0,
        backlog_bytes: int = _BACKLOG_BYTES,
    ):
        self._project = project
        self._entity = entity
        self._folder = folder
        self._warn = warn
        self._drain_seconds = drain_seconds
        self._backlog_bytes = backlog_bytes
        self._lock = threading.Lock()
        self._warned = False
        self._closed = False
        self._pending_bytes = 0
        self._asked: set[str] = set()
        self._lost: set[str] = set()
        self._off = False
        # Only the worker uses the four below.
        self._wandb: Any = None
        self._mode = ""
        self._runs: dict[str, Any] = {}
        self._opened_any = False
        self._url: str | None = None
        try:
            self._ledger = Ledger(folder / "wandb" / "delivered.txt")
        except OSError as error:
            self._ledger = None
            self._off = True
            self._say_once(f"W&B tracking is off: {_line(error)}")
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
        self._submit(run_id, size, lambda: self._log(run_id, rows, columns))

    def finish(self, run_id: str, summary: Mapping[str, float | str], exit_code: int = 0) -> None:
        summary = dict(summary)
        self._submit(run_id, _TASK_BYTES, lambda: self._finish(run_id, summary, exit_code))

    def delivered(self) -> frozenset[str]:
        return self._ledger.ids() if self._ledger else frozenset()

    def close(self) -> list[str]:
        self._tasks.put(None)
        self._worker.join(self._drain_seconds)
        self._closed = True
        lines = [f"W&B: {self._url}"] if self._url else []
        offline = self._folder / "wandb"
        if any(offline.glob("offline-run-*")):
            lines.append(f"wandb sync {shlex.quote(str(offline))}")
        if self._worker.is_alive():
            # Registered after the client's own, so that it runs before it.
            atexit.register(_stop_client)
            lines.append(f"W&B: still busy after {self._drain_seconds:g} s, stopped waiting")
        missing = sorted(self._asked - self.delivered())
        if missing:
            some = ", ".join(missing[:3]) + (", …" if len(missing) > 3 else "")
            lines.append(f"W&B: {len(missing)} of {len(self._asked)} runs are not complete there: {some}")
        return lines

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
            self._say_once("W&B does not keep up: what it cannot take is left out")
        else:
            self._tasks.put((run_id, size, act))

    def _say_once(self, line: str) -> None:
        with self._lock:
            silent = self._warned or self._closed
            self._warned = True
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
        for run in self._runs.values():
            # Unfinished (the sweep was stopped): not in the ledger, so that a resumed sweep sends them whole.
            with contextlib.suppress(Exception):
                run.finish(exit_code=1)

    def _lose(self, run_id: str, error: Exception) -> None:
        with self._lock:
            self._lost.add(run_id)
            self._off = not self._opened_any
        what = "tracking is off" if self._off else f"lost run {run_id}"
        self._say_once(f"W&B {what}: {_line(error)}")
        run = self._runs.pop(run_id, None)
        if run is not None:
            with contextlib.suppress(Exception):
                run.finish(exit_code=1)

    def _start(self, info: RunInfo) -> None:
        if self._wandb is None:
            self._wandb = importlib.import_module("wandb")
            # Set for the whole client, not only per run: it also prints when it finds a login.
            self._wandb.setup(self._wandb.Settings(silent=True))
            self._mode = wandb_mode(os.environ, lambda: _logged_in(self._wandb))
        try:
            run = self._init(info)
        except Exception as error:
            if self._mode == "offline":
                raise
            self._mode = "offline"
            self._say_once(f"W&B is out of reach, runs are written offline: {_line(error)}")
            run = self._init(info)
        self._opened_any = True
        run.define_metric(STEP)
        run.define_metric("*", step_metric=STEP)
        self._runs[info.run_id] = run
        if self._mode == "online":
            self._url = run.project_url

    def _init(self, info: RunInfo) -> Any:
        self._folder.mkdir(parents=True, exist_ok=True)
        return self._wandb.init(
            project=self._project,
            entity=self._entity,
            id=info.run_id,
            name=info.name,
            group=info.sweep,
            job_type=info.arm,
            # W&B takes tags of 1 to 64 characters.
            tags=[tag[:64] for tag in dict.fromkeys((info.world, info.trait)) if tag],
            config=info.config,
            dir=str(self._folder),
            mode=self._mode,
            reinit="create_new",
            resume="allow" if self._mode == "online" else None,
            settings=self._wandb.Settings(
                console="off",
                disable_git=True,
                init_timeout=30,
                save_code=False,
                silent=True,
                # The `latest-run` link would make `wandb sync` meet one run twice.
                symlink=False,
                use_dot_wandb=False,
                x_disable_machine_info=True,
                x_disable_meta=True,
                x_disable_stats=True,
                x_save_requirements=False,
            ),
        )

    def _log(self, run_id: str, steps: list[int], columns: dict[str, np.ndarray]) -> None:
        for values in zip(steps, *columns.values(), strict=True):
            step, *values = values
            row = {name: float(value) for name, value in zip(columns, values, strict=True) if not np.isnan(value)}
            if row:
                self._runs[run_id].log({STEP: step, **row})

    def _finish(self, run_id: str, summary: dict[str, float | str], exit_code: int) -> None:
        run = self._runs[run_id]
        for name, value in summary.items():
            if isinstance(value, str):
                run.summary[name] = value
            elif not np.isnan(value):
                run.summary[name] = float(value)
        run.finish(exit_code=exit_code)
        del self._runs[run_id]
        self._ledger.add(run_id)


def _line(error: BaseException) -> str:
    return next(iter(str(error).splitlines()), "") or type(error).__name__


def _stop_client() -> None:
    """Ends the client's service process, which the interpreter would otherwise wait for when it exits.

    W&B has no public call for this; where its inside differs, nothing happens and the exit may take longer.
    """
    with contextlib.suppress(Exception):
        connection = sys.modules["wandb.sdk.wandb_setup"]._singleton._connection
        connection._cleanup()
        connection._proc._process.kill()
