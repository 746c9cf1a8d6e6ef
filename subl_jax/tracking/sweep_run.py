"""The sweep itself as a tracker's run: there from the beginning, a row a group, and then what the report has."""

import hashlib
from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd

from subl_jax.engine.observers import RunInfo, Tracker
from subl_jax.engine.timing import GroupTiming
from subl_jax.errors import InputError
from subl_jax.results.comparisons import POOLED
from subl_jax.results.findings import findings
from subl_jax.results.load import Results
from subl_jax.storage import datasets

STEP = "sweep/group"

_MOST_ROWS = 10_000  # of a table; W&B shows no more
_MOST_DATASETS = 64
_SAMPLES = 8  # of each dataset
_SUMS = ("lanes", "lane_steps", "compile_seconds", "run_seconds")
_STUDENT = ("run_id", "arm", "trait", "base_seed", "student_base_seed", "seed", "status", "why")
_ENDS = ("target_start", "target_end", "others_end")


def sweep_id(name: str) -> str:
    """The id of a sweep's own run: the same whenever it is run again."""
    return f"sweep-{hashlib.sha256(name.encode()).hexdigest()[:10]}"


class SweepRun:
    """Opens the sweep's own run.

    Args:
      config: the sweep file's config, the settings, versions and the like.
    """

    def __init__(self, tracker: Tracker, name: str, config: Mapping[str, Any]) -> None:
        self._tracker = tracker
        self._id = sweep_id(name)
        self._count = 0
        self._sums = dict.fromkeys(_SUMS, 0.0)
        tracker.start(RunInfo(self._id, f"{name}: sweep", name, "sweep", "", None, dict(config), STEP, appends=True))

    def add(self, timing: GroupTiming) -> None:
        """A row of what a group took, as in sweep.json."""
        numbers = {name: float(each) for name, each in vars(timing).items() if not isinstance(each, str)}
        rows = {f"groups/{timing.stage}/{name}": np.asarray([value]) for name, value in numbers.items()}
        self._tracker.log(self._id, [self._count], rows)
        self._count += 1
        for name in _SUMS:
            self._sums[name] += numbers[name]

    def finish(self, results: Results) -> None:
        """Shows what the report has, and ends the run."""
        self._tracker.show(self._id, tables_of(results), figures_of(results))
        ok = all((table.status == "ok").all() for table in (results.runs, results.audits))
        summary = {**{f"groups/{name}": value for name, value in self._sums.items()}, **summary_of(results)}
        self._tracker.finish(self._id, summary, exit_code=0 if ok else 1)


def summary_of(results: Results) -> dict[str, float | str]:
    """The headline, how many students there are and how they ended, and every arm's means over all traits."""
    said = [f"{name}: {line}" if name else line for name, line in findings(results)]
    summary: dict[str, float | str] = {
        "headline": "\n".join(said),
        "links/report": str(results.workdir / "report.html"),
        "students": float(len(results.runs)),
    }
    summary |= {f"students/{status}": float(n) for status, n in results.runs["status"].value_counts().items()}
    pooled = results.summary[results.summary["trait"] == POOLED] if len(results.summary) else results.summary
    for arm, rows in pooled.groupby("arm", sort=False) if len(pooled) else ():
        for name, column in (("target", "mean"), ("off_diagonal", "others"), ("before", "target_start")):
            if column in rows:
                # Over the settings that the sweep varies; each has its row in the table.
                summary[f"arms/{arm}/{name}"] = float(rows[column].mean())
    return summary


def tables_of(results: Results) -> dict[str, pd.DataFrame]:
    """The tables of the report, the students with links to their runs, and some samples of each dataset."""
    students = results.runs[[name for name in (*_STUDENT, *_ENDS) if name in results.runs]]
    found = {
        "tables/summary": results.summary,
        "tables/comparisons": results.comparisons,
        "tables/students": students,
        "tables/datasets": results.datasets,
        "tables/samples": _samples(results),
        "tables/audits": results.audits,
    }
    return {name: _shown(table) for name, table in found.items() if len(table)}


def figures_of(results: Results) -> dict[str, bytes]:
    """The figures of the page, as PNG."""
    folder = results.workdir / "figures"
    files = sorted(folder.glob("*.png")) if folder.exists() else []
    return {f"figures/{file.stem}": file.read_bytes() for file in files}


def _samples(results: Results) -> pd.DataFrame:
    parts = []
    for row in results.datasets.head(_MOST_DATASETS).itertuples():
        try:
            table = datasets.read(results.workdir, row.key).head(_SAMPLES)
        except InputError:  # removed by hand, or never drawn
            continue
        parts.append(table.assign(dataset=row.key[:12], teacher=row.trait))
    return pd.concat(parts, ignore_index=True) if parts else pd.DataFrame()


def _shown(table: pd.DataFrame) -> pd.DataFrame:
    """A table of plain values: lists become text."""
    table = table.head(_MOST_ROWS).astype(object)
    return table.map(lambda value: str(list(value)) if isinstance(value, list | tuple | np.ndarray) else value)
