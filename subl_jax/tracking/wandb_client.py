"""The W&B client as the tracker uses it: opening a run, giving it rows, tables and images, ending it."""

import contextlib
import importlib
import io
import os
import pathlib
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

from subl_jax.engine.observers import RunInfo
from subl_jax.tracking import wandb_faults, wandb_place
from subl_jax.tracking.wandb_place import LONGEST_TAG, Place, fitting


def wandb_mode(environ: Mapping[str, str], logged_in: Callable[[], bool]) -> str:
    """ "online" or "offline". Online always needs a login, since the client would otherwise stop to ask for one."""
    if wandb_place.mode(environ) == "offline":
        return "offline"
    return "online" if logged_in() else "offline"


def logged_in(wandb: Any) -> bool:
    """Whether credentials lie ready: in the environment, in W&B's settings, or in netrc. Asks no server."""
    if os.environ.get("WANDB_API_KEY") or os.environ.get("WANDB_IDENTITY_TOKEN_FILE"):
        return True
    settings = wandb.setup().settings
    wbauth = importlib.import_module("wandb.sdk.lib.wbauth")
    return bool(settings.api_key or wbauth.read_netrc_auth(host=settings.base_url))


class Client:
    """Opens runs in one project. `init` and `finish`: seconds that the client may wait for the server.

    Raises:
      ImportError: wandb is not there, or whatever it raises when it cannot start.
    """

    def __init__(self, place: Place, folder: pathlib.Path, *, init: float, finish: float) -> None:
        self._wandb = importlib.import_module("wandb")
        # Set for the whole client, not only per run: it also prints when it finds a login.
        self._wandb.setup(self._wandb.Settings(silent=True))
        self.online = wandb_mode(os.environ, lambda: logged_in(self._wandb)) == "online"
        self._place = place
        self._folder = folder
        self._waits = {"init_timeout": init, "finish_timeout": finish}

    def open(self, info: RunInfo, wandb_id: str, online: bool) -> "OpenRun":
        """The run, new or gone on with. Raises what the client raises."""
        self._folder.mkdir(parents=True, exist_ok=True)
        run = self._wandb.init(
            project=self._place.project,
            entity=self._place.entity,
            id=wandb_id,
            name=fitting(info.name),
            group=fitting(info.sweep),
            job_type=fitting(info.arm, LONGEST_TAG),
            tags=[fitting(tag, LONGEST_TAG) for tag in dict.fromkeys((info.world, info.trait)) if tag],
            config=info.config,
            dir=str(self._folder),
            mode="online" if online else "offline",
            reinit="create_new",
            resume="allow" if online else None,
            settings=self._wandb.Settings(
                **self._waits,
                console="off",
                disable_git=True,
                finish_timeout_raises=True,
                save_code=False,
                silent=True,
                # By default the client interrupts this process when somebody stops a run on W&B's page.
                stop_fn=lambda: None,
                # The `latest-run` link would make `wandb sync` meet one run twice.
                symlink=False,
                use_dot_wandb=False,
                x_disable_machine_info=True,
                x_disable_meta=True,
                x_disable_stats=True,
                x_save_requirements=False,
            ),
        )
        run.define_metric(info.step)
        run.define_metric("*", step_metric=info.step)
        return OpenRun(self._wandb, run, info, online)


class OpenRun:
    """A run that is open in the client."""

    def __init__(self, wandb: Any, run: Any, info: RunInfo, online: bool) -> None:
        self.online = online
        self._wandb = wandb
        self._run = run
        self._step = info.step
        # A run that goes on has rows already: a student's come again and are left out, a sweep's come behind them.
        before = run.summary.get(info.step) if online and run.resumed else None
        last = -1 if before is None else int(before)
        self._after, self._offset = (-1, last + 1) if info.appends else (last, 0)

    @property
    def project_url(self) -> str:
        return self._run.project_url

    def log(self, steps: Sequence[int], columns: Mapping[str, np.ndarray]) -> None:
        """One row a step, without its NaNs. columns: (len(steps),) each."""
        for step, *values in zip(steps, *columns.values(), strict=True):
            row = {name: float(value) for name, value in zip(columns, values, strict=True) if not np.isnan(value)}
            if row and step > self._after:
                self._run.log({self._step: step + self._offset, **row})

    def show(self, tables: Mapping[str, pd.DataFrame], images: Mapping[str, bytes]) -> None:
        """Tables, and images as PNG, in one row."""
        shown: dict[str, Any] = {}
        for name, table in tables.items():
            rows = [[_plain(value) for value in row] for row in table.itertuples(index=False)]
            shown[name] = self._wandb.Table(
                columns=[str(column) for column in table.columns], data=rows, allow_mixed_types=True
            )
        for name, data in images.items():
            # Read only where there are images: it comes with matplotlib.
            shown[name] = self._wandb.Image(importlib.import_module("PIL.Image").open(io.BytesIO(data)))
        if shown:
            self._run.log(shown)

    def summarise(self, summary: Mapping[str, float | str]) -> None:
        for name, value in summary.items():
            if isinstance(value, str):
                self._run.summary[name] = value
            elif not np.isnan(value):
                self._run.summary[name] = float(value)

    def end(self, exit_code: int) -> str | None:
        """Waits until all has arrived. What the server said where it refused a part; None where all is there.

        Raises:
          TimeoutError: the server is out of reach.
        """
        self._run.finish(exit_code=exit_code)
        return wandb_faults.upload_refused(pathlib.Path(self._run.settings.log_internal)) if self.online else None


def _plain(value: Any) -> Any:
    """A table's value as the client takes it: None where there is none."""
    if value is None or value is pd.NA or value != value:
        return None
    return value.item() if isinstance(value, np.generic) else value


def stop_client() -> None:
    """Ends the client's service process, which the interpreter would otherwise wait for when it exits.

    W&B has no public call for this; where its inside differs, nothing happens and the exit may take longer.
    """
    with contextlib.suppress(Exception):
        connection = sys.modules["wandb.sdk.wandb_setup"]._singleton._connection
        connection._finalizer.close()
        connection._cleanup()
        connection._proc._process.kill()
