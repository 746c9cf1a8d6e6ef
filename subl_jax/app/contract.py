"""The results contract of a workdir (docs/results.md), written when everything is computed."""

import json
import types
import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from etils import epath

from subl_jax import specs
from subl_jax.app.code import write_code
from subl_jax.errors import StorageError
from subl_jax.probes import Theorem
from subl_jax.results import comparisons, report, specificity, tables
from subl_jax.specs.metrics import OF_TRAINING, Metric, collected
from subl_jax.storage.atomic import write_json_atomic, write_parquet_atomic
from subl_jax.storage.retrying import patiently
from subl_jax.storage.store import Store


def write_results(
    workdir: epath.Path,
    name: str,
    rows: Sequence[specs.Row],
    store: Store,
    sweep: dict[str, Any],
    code: Mapping[str, bytes] = types.MappingProxyType({}),
    warn: Callable[[str], None] = warnings.warn,
) -> None:
    """Writes every table and the report; `sweep.json` comes last and says that the others are there.

    The report never costs a finished sweep its tables: a fault of it is a line for `warn`.
    """
    students, audited = of_table("runs", rows), of_table("audits", rows)
    runs = tables.runs_table(name, students, store)
    curves = tables.curves_table(students, store)
    datasets = tables.datasets_table(rows, store)
    audits = tables.audits_table(name, audited, store)
    runs = runs.join(specificity.others(runs, curves))
    found = comparisons.summarise(runs)
    written = {"runs": runs, "curves": curves, "datasets": datasets, "audits": audits, **found._asdict()}
    for file, table in written.items():
        write_parquet_atomic(workdir / f"{file}.parquet", table)
    try:
        report.write_report(workdir, runs, curves, found, datasets, sweep, audits, warn=warn)
    except StorageError:
        raise
    except Exception as error:  # of whatever library draws or writes the page
        warn(f"report.html could not be written, the tables are: {report.fault(error)}")
    write_code(workdir, code)
    write_json_atomic(workdir / "sweep.json", sweep)


def earlier_runs(workdir: epath.Path) -> list[dict[str, Any]]:
    """What earlier commands computed in `workdir`, the latest last: a rerun must not lose their timings."""
    try:
        before = json.loads(patiently((workdir / "sweep.json").read_bytes))
        parts = {name: before[name] for name in ("command", "started", "seconds", "groups")}
        return before["earlier"] + ([parts] if parts["groups"] else [])
    except (OSError, ValueError, KeyError, TypeError):  # none, or one that was damaged
        return []


def of_table(table: str, rows: Sequence[specs.Row]) -> list[specs.Row]:
    """Those nodes of a sweep that have a row in this table."""
    return [row for row in rows if row.row == table]


def base_rates(rows: Sequence[specs.Row]) -> dict[str, float]:
    """Trait → P of it in a model without preferences, of every world of the sweep."""
    worlds = {row.world.key: row.world for row in rows}
    return {trait: rate for world in worlds.values() for trait, rate in world.base_rates.items()}


def metrics_of(rows: Sequence[specs.Row]) -> dict[str, Metric]:
    """Metric → what it is called and how it is drawn: those that training measures, then the worlds' and probes'."""
    students = of_table("runs", rows)
    worlds = {row.world.key: row.world.metrics for row in rows}
    probes = {probe.key: probe.metrics for student in students for probe in student.probes}
    followed = [Theorem.metrics] if any(student.theory for student in students) else []
    return collected([OF_TRAINING, *worlds.values(), *probes.values(), *followed])
