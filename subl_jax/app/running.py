"""One sweep from specs to the results contract: what the command line and `subl_jax.run` both call."""

import contextlib
import dataclasses
import datetime
import functools
import json
import sys
import time
from collections.abc import Callable, Iterable
from typing import Any

import pandas as pd
from etils import epath
from rich.console import Console

from subl_jax import specs
from subl_jax.app.contract import base_rates, earlier_runs, metrics_of, write_results
from subl_jax.app.facts import installed, machine
from subl_jax.app.processes import check_equal, check_shared, opened
from subl_jax.channels.imported import suspicious
from subl_jax.engine.plan import Plan
from subl_jax.engine.preemption import preemption_notice
from subl_jax.engine.runner import Elsewhere, Engine
from subl_jax.engine.settings import Settings
from subl_jax.engine.timing import GroupTiming
from subl_jax.errors import InputError
from subl_jax.fleet import Fleet
from subl_jax.results.load import Results, load
from subl_jax.runtime import cluster
from subl_jax.storage.store import Store
from subl_jax.storage.workdir import lock, open_workdir, remove_leftovers
from subl_jax.tracking.terminal import Progress
from subl_jax.tracking.wandb_runs import local_folder, make_tracker

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
) -> Outcome:
    """Computes what is missing of `rows`, students and audited datasets, in `workdir`, and writes the contract there.

    With a `fleet` its machines compute, and this process plans and writes the tables. `profile` writes jax's trace of
    some steps of the largest group to the folder `profile` of the workdir.

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
    peers = cluster.peers()
    progress = progress or Progress(None if peers.leads else Console(quiet=True))
    workdir = peers.together(lambda: open_workdir(workdir))
    began, clock = datetime.datetime.now(datetime.UTC), time.perf_counter()
    with contextlib.ExitStack() as held:
        if peers.count > 1:
            check_shared(peers, workdir)
        peers.together(lambda: held.enter_context(lock(workdir)) if peers.leads else None)
        machines = held.enter_context(fleet.connected()) if fleet else None
        held.enter_context(progress)
        preempted = held.enter_context(preemption_notice())
        # Batches of a fleet's driver that was killed a moment ago may still be on their way.
        store, plan = opened(peers, workdir, rows, progress, tidy=fleet is None)
        check_equal(peers, plan, settings)
        for line in suspicious_imports(rows) if peers.leads else ():
            progress.warn(line)
        options = {"settings": settings, "progress": progress, "preempted": preempted}
        elsewhere = machines and functools.partial(machines.compute, workdir=workdir, store=store, **options)
        timings, lines = _computed(workdir, name, store, plan, elsewhere, profile, **options)
        if fleet:
            remove_leftovers(workdir)  # of machines that died on the way
        sweep = {
            "sweep": name,
            "command": " ".join(sys.argv),
            "started": began.isoformat(timespec="seconds"),
            "seconds": time.perf_counter() - clock,
            "config": json.loads(json.dumps(config or {}, default=str)),
            "settings": dataclasses.asdict(settings),
            "base_rate": base_rates(rows),
            "metrics": {name: dataclasses.asdict(metric) for name, metric in metrics_of(rows).items()},
            "reused_nodes": len(plan.reused),
            "groups": [dataclasses.asdict(timing) for timing in timings],
            "earlier": earlier_runs(workdir),
            "fleet": machines and machines.facts,
            **machine(),
        }
        peers.together(lambda: write_results(workdir, name, rows, store, sweep) if peers.leads else None)
        results = load(workdir)
    return Outcome(results, [*lines, *trouble(results)])


def _computed(
    workdir: epath.Path,
    name: str,
    store: Store,
    plan: Plan,
    elsewhere: Elsewhere | None,
    profile: bool,
    *,
    settings: Settings,
    progress: Progress,
    preempted: Callable[[], bool],
) -> tuple[list[GroupTiming], list[str]]:
    """Computes the plan, and tracks it. The timings of its groups, and the tracker's lines for the end."""
    peers = cluster.peers()
    kind = settings.tracker if peers.leads else "none"
    tracker = peers.together(lambda: make_tracker(kind, workdir=workdir, project=settings.project, warn=progress.warn))
    traces = local_folder(workdir) / "profile" if profile and peers.leads else None
    lines: list[str] = []
    try:
        engine = Engine(workdir, name, store, settings, tracker, progress, preempted, traces)
        timings = engine.compute(plan, elsewhere)
    finally:
        lines += tracker.close()
    return timings, lines


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
