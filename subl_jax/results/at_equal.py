"""Students compared where they are alike in something else: at equal KL to the teacher, at equal norm of the update."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

from subl_jax.results.cells import is_missing
from subl_jax.results.units import by_base
from subl_jax.statistics.intervals import interval


def at_level(curves: pd.DataFrame, by: str, level: float, value: str = "target", log: bool = False) -> pd.Series:
    """Each run's `value` where its curve of `by` first reaches `level`; NaN where it never does.

    Both are taken as straight lines between two points of the curves; `log`: the logarithm of `by` is.

    Args:
      curves: as in docs/results.md.

    Returns:
      By run_id.
    """
    found = {}
    wide = curves[curves["metric"].isin([by, value])].pivot_table(
        index=["run_id", "step"], columns="metric", values="value", observed=True
    )
    if by not in wide or value not in wide:
        return pd.Series(dtype=float)
    for run_id, rows in wide.groupby(level="run_id", observed=True):
        rows = rows.dropna().sort_index()
        found[run_id] = _reached(rows[by].to_numpy(), rows[value].to_numpy(), level, log)
    return pd.Series(found, dtype=float)


def _reached(by: np.ndarray, value: np.ndarray, level: float, log: bool) -> float:
    if log:
        with np.errstate(divide="ignore", invalid="ignore"):
            by, level = np.log(by), float(np.log(level))
    exact = np.flatnonzero(by == level)
    crossed = np.flatnonzero((by[:-1] - level) * (by[1:] - level) < 0)
    if len(exact) and (not len(crossed) or exact[0] <= crossed[0]):
        return float(value[exact[0]])
    if not len(crossed):
        return float("nan")
    at = crossed[0]
    share = (level - by[at]) / (by[at + 1] - by[at])
    return float(value[at] + share * (value[at + 1] - value[at]))


def common_level(
    runs: pd.DataFrame, curves: pd.DataFrame, by: str, fields: Sequence[str], quantile: float = 0.9
) -> float:
    """The level of `by` that all cells come to: of each cell's runs the share `quantile` reach it.

    A curve that falls (a KL) is asked for its least, one that rises (a norm) for its most.
    """
    wanted = curves[curves["metric"] == by].sort_values("step", kind="stable")
    ends = wanted.groupby("run_id", observed=True)["value"].agg(["first", "last", "min", "max"])
    ends.index = ends.index.astype(str)
    ok = runs[runs["status"] == "ok"].drop_duplicates("run_id").set_index("run_id")
    ends = ends.join(ok[list(fields)], how="inner").assign(
        **{name: lambda t, name=name: t[name].astype(str) for name in fields}
    )
    falls = bool((ends["last"] < ends["first"]).mean() >= 0.5)
    cells = ends.groupby(list(fields))["min" if falls else "max"]
    return float(cells.quantile(quantile).max() if falls else cells.quantile(1 - quantile).min())


def table(
    runs: pd.DataFrame,
    curves: pd.DataFrame,
    by: str,
    fields: Sequence[str],
    level: float | None = None,
    log: bool = False,
    confidence: float = 0.95,
) -> pd.DataFrame:
    """P(trait) at equal `by`, over bases, t intervals on the logit scale: a row for every arm and value of `fields`.

    Columns: the fields, `arm`, `level`, `mean`, `low`, `high`, `bases`, and `reached`, the share of runs that come to
    the level; only these are in the mean. level None: `common_level` of the arm same_init.
    """
    if level is None:
        level = common_level(runs[runs["arm"] == "same_init"], curves, by, fields)
    found = []
    for cell, rows, bases in _cells(runs, curves, by, fields, level, log):
        mean, low, high = interval(bases, confidence, probability=True)
        found.append((*cell, level, mean, low, high, int(bases.notna().sum()), rows["at"].notna().mean()))
    return pd.DataFrame(found, columns=[*fields, "arm", "level", "mean", "low", "high", "bases", "reached"])


def differences(
    runs: pd.DataFrame,
    curves: pd.DataFrame,
    by: str,
    fields: Sequence[str],
    reference: Mapping[str, Any],
    level: float | None = None,
    log: bool = False,
    confidence: float = 0.95,
) -> pd.DataFrame:
    """How much more than the cell `reference` every other one takes at equal `by`, in same_init, paired by base.

    Args:
      reference: some of the fields with their values there, the others are the row's own: {"student.lora.rank": 8.0}
        compares each rank with 8, teachers being alike. NaN where the field has no value, as without adapters.
      level: as in `table`.

    Returns:
      The fields, `level`, `difference`, `low`, `high` (t intervals), `bases`; only bases where both reach the level.
    """
    same = runs[runs["arm"] == "same_init"]
    if level is None:
        level = common_level(same, curves, by, fields)
    cells = {
        tuple(map(_named, cell[:-1])): (cell[:-1], bases)
        for cell, _, bases in _cells(same, curves, by, fields, level, log)
    }
    found = []
    for name, (cell, bases) in cells.items():
        of = tuple(
            _named(reference[field]) if field in reference else own for field, own in zip(fields, name, strict=True)
        )
        if of == name or of not in cells:
            continue
        pairs = bases - cells[of][1]
        found.append((*cell, level, *interval(pairs, confidence), int(pairs.notna().sum())))
    return pd.DataFrame(found, columns=[*fields, "level", "difference", "low", "high", "bases"])


def _named(value: Any) -> Any:
    """What a cell is looked up by: NaN is not equal to itself."""
    return None if is_missing(value) else value


def _cells(
    runs: pd.DataFrame, curves: pd.DataFrame, by: str, fields: Sequence[str], level: float, log: bool
) -> Iterator[tuple[tuple[Any, ...], pd.DataFrame, pd.Series]]:
    """The values of `fields` and the arm, the runs, and their mean at the level by base (column `at` of the runs)."""
    ends = at_level(curves, by, level, log=log)
    runs = runs.assign(at=runs["run_id"].map(ends.to_dict()).astype(float))
    for cell, rows in runs[runs["trait"].notna()].groupby([*fields, "arm"], dropna=False, sort=False):
        yield cell, rows, by_base(rows, "at").mean(axis=0)
