"""One sweep from specs to the results contract: what the command line and `subl_jax.run` both call."""

import contextlib
import dataclasses
import datetime
import functools
import importlib.metadata
import json
import platform
import subprocess
import sys
import time
from collections.abc import Iterable, Sequence
from typing import Any

import jax
from etils import epath

from subl_jax import __version__, report, specs, tables
from subl_jax.analysis import statistics
from subl_jax.atomic import TEMPORARY, is_local, write_json_atomic, write_parquet_atomic
from subl_jax.engine import Engine, plan_of, preemption_notice
from subl_jax.fleet import Fleet
from subl_jax.progress import Progress
from subl_jax.results import Results, load
from subl_jax.retrying import patiently
from subl_jax.settings import Settings
from subl_jax.store import Store, lock, open_workdir
from subl_jax.tracking import make_tracker

_PACKAGES = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "numpy", "ml-collections", "wandb")


@dataclasses.dataclass(frozen=True)
class Outcome:
    """A sweep's results, and the lines to show a person at its end."""

    results: Results
    lines: list[str]

    @property
    def all_ok(self) -> bool:
        return bool((self.results.runs.status == "ok").all())


def run(
    students: Iterable[specs.Student],
    workdir: epath.PathLike,
    *,
    name: str = "sweep",
    settings: Settings | None = None,
    config: dict[str, Any] | None = None,
    progress: Progress | None = None,
    fleet: Fleet | None = None,
) -> Outcome:
    """Computes what is missing of `students` in `workdir`, and writes the results contract there.

    With a `fleet` its machines compute, and this process plans and writes the tables.

    Raises:
      InputError: before anything is computed: bad specs, an unusable workdir, another sweep running in it, no fleet.
      Preempted: SIGTERM or ctrl-C came; run it again to go on.
      StorageError: results could not be written.
      FleetError: the machines of the fleet cannot compute what is left.
    """
    students = specs.checked(students)
    settings = settings or Settings(tracker="none")
    progress = progress or Progress()
    workdir = open_workdir(workdir)
    started, clock = datetime.datetime.now(datetime.UTC), time.perf_counter()
    connected = fleet.connected() if fleet else contextlib.nullcontext()
    with lock(workdir), connected as cluster, progress, preemption_notice() as preempted:
        remove_leftovers(workdir)
        # Batches of a fleet's driver that was killed a moment ago may still be on their way.
        store = Store(workdir, warn=progress.warn, tidy=fleet is None)
        plan = plan_of(students, store)
        tracker = make_tracker(settings.tracker, workdir=workdir, project=settings.project, warn=progress.warn)
        lines: list[str] = []
        elsewhere = cluster and functools.partial(
            cluster.compute, workdir=workdir, settings=settings, store=store, progress=progress, preempted=preempted
        )
        try:
            timings = Engine(workdir, name, store, settings, tracker, progress, preempted).compute(plan, elsewhere)
        finally:
            lines = tracker.close()
        sweep = {
            "sweep": name,
            "command": " ".join(sys.argv),
            "started": started.isoformat(timespec="seconds"),
            "seconds": time.perf_counter() - clock,
            "config": json.loads(json.dumps(config or {}, default=str)),
            "settings": dataclasses.asdict(settings),
            "base_rate": base_rates(students),
            "reused_nodes": len(plan.reused),
            "groups": [dataclasses.asdict(timing) for timing in timings],
            "earlier": earlier_runs(workdir),
            "fleet": cluster and cluster.facts,
            **machine(),
        }
        remove_leftovers(workdir)
        results = write_results(workdir, name, students, store, sweep)
    return Outcome(results, [*lines, *trouble(results)])


def write_results(
    workdir: epath.Path, name: str, students: Sequence[specs.Student], store: Store, sweep: dict[str, Any]
) -> Results:
    """Writes every table and the report; `sweep.json` comes last and says that the others are there."""
    runs = tables.runs_table(name, students, store)
    curves = tables.curves_table(students, store)
    datasets = tables.datasets_table(students, store)
    summary = statistics.summarise(runs)
    for file, table in {"runs": runs, "curves": curves, "datasets": datasets, "summary": summary}.items():
        write_parquet_atomic(workdir / f"{file}.parquet", table)
    report.write_report(workdir, runs, curves, summary, datasets, sweep)
    write_json_atomic(workdir / "sweep.json", sweep)
    return load(workdir)


def earlier_runs(workdir: epath.Path) -> list[dict[str, Any]]:
    """What earlier commands computed in `workdir`, the latest last: a rerun must not lose their timings."""
    try:
        before = json.loads(patiently((workdir / "sweep.json").read_bytes))
        parts = {name: before[name] for name in ("command", "started", "seconds", "groups")}
        return before["earlier"] + ([parts] if parts["groups"] else [])
    except (OSError, ValueError, KeyError, TypeError):  # none, or one that was damaged
        return []


def remove_leftovers(workdir: epath.Path) -> None:
    """Removes the files that killed processes left half written; those of `artifacts` are the store's."""
    if is_local(workdir):
        for folder in ("", "datasets", "figures"):
            for path in (workdir / folder).glob(f"*{TEMPORARY}-*"):
                if path.is_file():
                    path.unlink(missing_ok=True)


def base_rates(students: Sequence[specs.Student]) -> dict[str, float]:
    """Trait → P of it in a model without preferences, of every world of the sweep."""
    worlds = {student.world.key: student.world for student in students}
    return {trait: rate for world in worlds.values() for trait, rate in world.base_rates.items()}


def machine() -> dict[str, Any]:
    """Versions, devices and git revision: what one needs to know to repeat a sweep."""
    versions = {name: importlib.metadata.version(name) for name in _PACKAGES}
    return {
        "versions": {"subl_jax": __version__, "python": platform.python_version(), **versions},
        "devices": [f"{device.platform}:{device.device_kind}" for device in jax.devices()],
        "git": _git_revision(),
    }


def _git_revision() -> str | None:
    here = epath.Path(__file__).parent
    command = ["git", "-C", str(here), "describe", "--always", "--dirty", "--abbrev=40"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=10, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() or None


def trouble(results: Results) -> list[str]:
    """One line for the students that are not ok."""
    bad = results.runs[results.runs.status != "ok"]
    if bad.empty:
        return []
    first = bad.iloc[0]
    return [
        f"{len(bad)} of {len(results.runs)} runs are not ok: "
        + ", ".join(f"{count} {status}" for status, count in bad.status.value_counts().items())
        + f"; the first, {first.run_id} ({first.arm}, {first.trait}): {first.why}"
    ]
