"""One sweep from specs to the results contract: what the command line and `subl_jax.run` both call."""

import contextlib
import dataclasses
import datetime
import functools
import json
import os
import sys
import time
from collections.abc import Iterable, Mapping
from typing import Any

import pandas as pd
from etils import epath
from rich.console import Console

from subl_jax import specs
from subl_jax.app.contract import base_rates, earlier_runs, metrics_of, write_results
from subl_jax.app.facts import installed, machine
from subl_jax.app.processes import check_equal, check_shared, opened
from subl_jax.channels.imported import suspicious
from subl_jax.engine.observers import NoTracker, Tracker
from subl_jax.engine.plan import Plan
from subl_jax.engine.preemption import preemption_notice
from subl_jax.engine.runner import Engine
from subl_jax.engine.settings import Settings
from subl_jax.errors import InputError
from subl_jax.fleet import Fleet
from subl_jax.results.load import Results, load
from subl_jax.runtime import cluster, devices
from subl_jax.storage.atomic import is_local
from subl_jax.storage.workdir import lock, open_workdir, remove_leftovers
from subl_jax.tracking import plain_text
from subl_jax.tracking.sweep_run import SweepRun, sweep_id
from subl_jax.tracking.terminal import Progress
from subl_jax.tracking.wandb_place import local_folder
from subl_jax.tracking.wandb_runs import make_tracker

__all__ = [
    "Outcome",
    "base_rates",
    "check_equal",
    "check_shared",
    "earlier_runs",
    "installed",
    "machine",
    "metrics_of",
    "opened",
    "remove_leftovers",
    "run",
    "write_results",
]


@dataclasses.dataclass(frozen=True)
class Outcome:
    """A sweep's results, and the lines to show a person at its end."""

    results: Results
    lines: list[str]

    @property
    def all_ok(self) -> bool:
        return all((table.status == "ok").all() for table in (self.results.runs, self.results.audits))


def run(
    rows: Iterable[specs.Row],
    workdir: epath.PathLike,
    *,
    name: str = "sweep",
    settings: Settings | None = None,
    config: dict[str, Any] | None = None,
    progress: Progress | None = None,
    fleet: Fleet | None = None,
    profile: bool = False,
    code: Mapping[str, bytes] | None = None,
) -> Outcome:
    """Computes what is missing of `rows`, students and audited datasets, in `workdir`, and writes the contract there.

    With a `fleet` its machines compute, and this process plans and writes the tables. `profile` writes jax's trace of
    some steps of the largest group to the folder `profile` of the workdir. `code` is kept there, too: name → content of
    the files that made the specs.

    Raises:
      InputError: before anything is computed: bad specs, an unusable workdir, another sweep running in it, no fleet.
      Preempted: SIGTERM or ctrl-C came; run it again to go on.
      StorageError: results could not be written.
      FleetError: the machines of the fleet cannot compute what is left.
      OutOfMemory: not even one lane of a group fits on the devices.
    """
    if profile and fleet:
        raise InputError("--profile: steps are traced on this machine; give it without --launcher=ray")
    rows = specs.checked(rows)
    settings = settings or Settings(tracker="none")
    plain_text.allow()
    devices.check()
    peers = cluster.peers()
    progress = progress or Progress(None if peers.leads else Console(quiet=True))
    if not is_local(workdir):
        progress.say(f"opening {os.fspath(workdir)}")  # an object store may take its time to answer, or to refuse
    workdir = peers.together(lambda: open_workdir(workdir))
    began, clock = datetime.datetime.now(datetime.UTC), time.perf_counter()
    lines: list[str] = []
    with contextlib.ExitStack() as held:
        if peers.count > 1:
            check_shared(peers, workdir)
        peers.together(lambda: held.enter_context(lock(workdir)) if peers.leads else None)
        # First of all lines: a sweep that fell back to the CPU must not go unnoticed.
        progress.say(f"devices: {devices.described()}" if fleet is None else "devices: those of the fleet")
        held.enter_context(devices.usual_settings(progress.warn))
        machines = held.enter_context(fleet.connected()) if fleet else None
        held.enter_context(progress)
        preempted = held.enter_context(preemption_notice())
        # Batches of a fleet's driver that was killed a moment ago may still be on their way.
        store, plan = opened(peers, workdir, rows, progress, tidy=fleet is None)
        check_equal(peers, plan, settings)
        for note in (*plan.notes, *(suspicious_imports(rows) if peers.leads else ())):
            progress.warn(note)
        tracker = _tracker(workdir, settings, progress)
        held.callback(lambda: lines.extend(tracker.close()))
        facts = {
            "sweep": name,
            "command": " ".join(sys.argv),
            "started": began.isoformat(timespec="seconds"),
            "config": json.loads(json.dumps(config or {}, default=str)),
            "settings": dataclasses.asdict(settings),
            **machine(),
        }
        record = _sweep_run(tracker, name, plan, facts)
        options = {"settings": settings, "progress": progress, "preempted": preempted}
        elsewhere = machines and functools.partial(machines.compute, workdir=workdir, store=store, **options)
        traces = local_folder(workdir) / "profile" if profile and peers.leads else None
        engine = Engine(workdir, name, store, settings, tracker, progress, preempted, traces)
        timings = engine.compute(plan, elsewhere, record.add if record else lambda timing: None)
        if fleet:
            remove_leftovers(workdir)  # of machines that died on the way
        sweep = {
            **facts,
            "seconds": time.perf_counter() - clock,
            "base_rate": base_rates(rows),
            "metrics": {name: dataclasses.asdict(metric) for name, metric in metrics_of(rows).items()},
            "reused_nodes": len(plan.reused),
            "groups": [dataclasses.asdict(timing) for timing in timings],
            "earlier": earlier_runs(workdir),
            "fleet": machines and machines.facts,
        }
        faults: list[str] = []
        write = functools.partial(write_results, workdir, name, rows, store, sweep, code or {}, warn=faults.append)
        peers.together(lambda: write() if peers.leads else None)
        results = load(workdir)
        if record:
            _shown(record, results, progress)
    return Outcome(results, [*lines, *trouble(results), *(f"warning: {fault}" for fault in faults)])


def _tracker(workdir: epath.Path, settings: Settings, progress: Progress) -> Tracker:
    """The leading process tracks, for all."""
    peers = cluster.peers()
    kind = settings.tracker if peers.leads else "none"
    return peers.together(lambda: make_tracker(kind, workdir=workdir, project=settings.project, warn=progress.warn))


def _sweep_run(tracker: Tracker, name: str, plan: Plan, facts: dict[str, Any]) -> SweepRun | None:
    """The sweep's own run, opened where somebody tracks and there is something new to say."""
    if isinstance(tracker, NoTracker) or (not plan.groups and sweep_id(name) in tracker.delivered()):
        return None
    return SweepRun(tracker, name, facts)


def _shown(record: SweepRun, results: Results, progress: Progress) -> None:
    """Ends the sweep's own run. The results are written: what goes wrong here costs a line, and no more."""
    try:
        record.finish(results)
    except Exception as error:
        progress.warn(f"W&B: the sweep's own run lacks its tables: {type(error).__name__}: {error}")


def finished_files(workdir: epath.Path) -> dict[str, str]:
    """Name → path of the files that the end of a sweep points to."""
    return {name: str(workdir / name) for name in ("report.html", "summary.parquet", "runs.parquet")}


def suspicious_imports(rows: Iterable[specs.Row]) -> list[str]:
    """One line for each imported file that says a trait, or holds what its world's filter would drop."""
    found = {node.key: node for row in rows for _, node in row.data.kin() if isinstance(node, specs.Imported)}
    lines = [suspicious(node, node.world.standard_filter) for node in found.values()]
    return [line for line in lines if line is not None]


def trouble(results: Results) -> list[str]:
    """One line for the students that are not ok, and one for such audits."""
    tables = {"runs": (results.runs, ("run_id", "arm")), "audits": (results.audits, ("audit_id", "audit"))}
    return [line for what, (table, names) in tables.items() for line in _not_ok(what, table, *names)]


def _not_ok(what: str, table: pd.DataFrame, id: str, kind: str) -> list[str]:
    bad = table[table.status != "ok"]
    if bad.empty:
        return []
    first = bad.iloc[0]
    return [
        f"{len(bad)} of {len(table)} {what} are not ok: "
        + ", ".join(f"{count} {status}" for status, count in bad.status.value_counts().items())
        + f"; the first, {first[id]} ({first[kind]}, {first.trait}): {first.why}"
    ]
