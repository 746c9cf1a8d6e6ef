"""One sweep from specs to the results contract: what the command line and `subl_jax.run` both call."""

import contextlib
import dataclasses
import datetime
import functools
import hashlib
import importlib.metadata
import json
import platform
import subprocess
import sys
import time
import uuid
from collections.abc import Iterable, Sequence
from typing import Any

import jax
from etils import epath
from rich.console import Console

from subl_jax import __version__, specs
from subl_jax.engine.plan import Plan, make_plan
from subl_jax.engine.runner import Engine, plan_of, preemption_notice
from subl_jax.engine.settings import Settings
from subl_jax.errors import InputError
from subl_jax.fleet.driver import Fleet
from subl_jax.results import comparisons, report, specificity, tables
from subl_jax.results.load import Results, load
from subl_jax.runtime import cluster
from subl_jax.specs.metrics import OF_THE_THEOREM, OF_TRAINING, Metric, collected
from subl_jax.storage.atomic import TEMPORARY, is_local, write_json_atomic, write_parquet_atomic
from subl_jax.storage.retrying import patiently
from subl_jax.storage.store import Store, lock, open_workdir
from subl_jax.tracking.terminal import Progress
from subl_jax.tracking.wandb_runs import local_folder, make_tracker

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
    profile: bool = False,
) -> Outcome:
    """Computes what is missing of `students` in `workdir`, and writes the results contract there.

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
    students = specs.checked(students)
    settings = settings or Settings(tracker="none")
    peers = cluster.peers()
    progress = progress or Progress(None if peers.leads else Console(quiet=True))
    workdir = peers.together(lambda: open_workdir(workdir))
    started, clock = datetime.datetime.now(datetime.UTC), time.perf_counter()
    with contextlib.ExitStack() as held:
        if peers.count > 1:
            check_shared(peers, workdir)
        peers.together(lambda: held.enter_context(lock(workdir)) if peers.leads else None)
        machines = held.enter_context(fleet.connected()) if fleet else None
        held.enter_context(progress)
        preempted = held.enter_context(preemption_notice())
        # Batches of a fleet's driver that was killed a moment ago may still be on their way.
        store, plan = opened(peers, workdir, students, progress, tidy=fleet is None)
        check_equal(peers, plan, settings)
        kind = settings.tracker if peers.leads else "none"
        tracker = peers.together(
            lambda: make_tracker(kind, workdir=workdir, project=settings.project, warn=progress.warn)
        )
        lines: list[str] = []
        elsewhere = machines and functools.partial(
            machines.compute, workdir=workdir, settings=settings, store=store, progress=progress, preempted=preempted
        )
        try:
            traces = local_folder(workdir) / "profile" if profile and peers.leads else None
            engine = Engine(workdir, name, store, settings, tracker, progress, preempted, traces)
            timings = engine.compute(plan, elsewhere)
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
            "metrics": {name: dataclasses.asdict(metric) for name, metric in metrics_of(students).items()},
            "reused_nodes": len(plan.reused),
            "groups": [dataclasses.asdict(timing) for timing in timings],
            "earlier": earlier_runs(workdir),
            "fleet": machines and machines.facts,
            **machine(),
        }
        if fleet:
            remove_leftovers(workdir)  # of machines that died on the way
        peers.together(lambda: write_results(workdir, name, students, store, sweep) if peers.leads else None)
        results = load(workdir)
    return Outcome(results, [*lines, *trouble(results)])


def opened(
    peers: cluster.Peers,
    workdir: epath.Path,
    students: Sequence[specs.Student],
    progress: Progress,
    tidy: bool = True,
) -> tuple[Store, Plan]:
    """The store and the plan of what is left. One process tidies up and reads the store, for all."""

    def open_first() -> tuple[Store, Plan] | None:
        if not peers.leads:
            return None
        remove_leftovers(workdir)
        store = Store(workdir, warn=progress.warn, tidy=tidy)
        return store, plan_of(students, store)

    first = peers.together(open_first)
    entries = peers.first(first and peers.count > 1 and first[0].entries())
    if first:
        return first
    store = Store(workdir, warn=progress.warn, entries=entries)
    return store, make_plan(students, store.done(), store.bare())


def check_shared(peers: cluster.Peers, workdir: epath.Path) -> None:
    """Raises InputError where not all processes see the same files in `workdir`."""
    probe = workdir / f".probe{TEMPORARY}-{peers.first(uuid.uuid4().hex[:12])}"
    peers.together(lambda: probe.write_bytes(b"") if peers.leads else None)
    sees = peers.gather(probe.exists())
    if peers.leads:
        probe.unlink()
    if not all(sees):
        raise InputError(
            f"--workdir {workdir}: process {sees.index(False)} does not see what process 0 writes there; "
            "give a directory on storage that all processes share"
        )


def check_equal(peers: cluster.Peers, plan: Plan, settings: Settings) -> None:
    """Raises InputError where the processes were started with sweeps or settings that differ."""
    keys = [[group.form, *(node.key for node in group.nodes)] for group in plan.groups]
    digests = peers.gather(hashlib.sha256(json.dumps([keys, dataclasses.asdict(settings)]).encode()).hexdigest())
    odd = next((i for i, digest in enumerate(digests) if digest != digests[0]), None)
    if odd is not None:
        raise InputError(
            f"process {odd} was started with another sweep or other settings than process 0; "
            "start all with the same command line, but for --process_id"
        )


def write_results(
    workdir: epath.Path, name: str, students: Sequence[specs.Student], store: Store, sweep: dict[str, Any]
) -> None:
    """Writes every table and the report; `sweep.json` comes last and says that the others are there."""
    runs = tables.runs_table(name, students, store)
    curves = tables.curves_table(students, store)
    datasets = tables.datasets_table(students, store)
    runs = runs.join(specificity.others(runs, curves))
    found = comparisons.summarise(runs)
    written = {"runs": runs, "curves": curves, "datasets": datasets, **found._asdict()}
    for file, table in written.items():
        write_parquet_atomic(workdir / f"{file}.parquet", table)
    report.write_report(workdir, runs, curves, found, datasets, sweep)
    write_json_atomic(workdir / "sweep.json", sweep)


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


def metrics_of(students: Sequence[specs.Student]) -> dict[str, Metric]:
    """Metric → what it is called and how it is drawn: those that training measures, then the worlds' and probes'."""
    return collected([OF_TRAINING, OF_THE_THEOREM])


def machine() -> dict[str, Any]:
    """Versions, devices and git revision: what one needs to know to repeat a sweep."""
    return {
        "versions": {"subl_jax": __version__, "python": platform.python_version(), **installed(*_PACKAGES)},
        "devices": [f"{device.platform}:{device.device_kind}" for device in jax.devices()],
        "git": _git_revision(),
    }


def installed(*packages: str) -> dict[str, str]:
    """The versions of those packages that there are."""
    found = {}
    for name in packages:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            found[name] = importlib.metadata.version(name)
    return found


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
