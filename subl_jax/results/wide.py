"""The summary as it was before comparisons had a table of their own: wide, with columns for each reference."""

from typing import Any, NamedTuple

import pandas as pd

from subl_jax.results.cells import key_of
from subl_jax.results.comparisons import (
    COMPARED,
    DIFFERENCE,
    OTHERS,
    RATIO,
    Comparison,
    Lookup,
    Summarised,
    compared_with,
)

_LAST = ("confidence", "interval")


def wide_summary(summary: pd.DataFrame, comparisons: pd.DataFrame) -> pd.DataFrame:
    """One row per (sweep, world, swept fields, trait, arm) with everything that it is compared with beside it.

    For each reference R that is `diff_R`, `diff_R_low`, `diff_R_high`, `p_R`, `p_R_holm`, `pairs_R`, and of ratios of
    gains `ratio_R`, `ratio_R_low`, `ratio_R_high`, `p_ratio_R`, `p_ratio_R_holm`, `pairs_ratio_R`. Where an arm is not
    compared with R they are missing.
    """
    lookup, lines = Lookup(comparisons), summary.to_dict("records")
    cell_fields = [name for name in summary.columns if name in ("sweep", "world") or "." in name]

    def cell_of(line: dict[str, Any]) -> tuple[Any, ...]:
        return tuple(key_of(line[name]) for name in cell_fields)

    arms: dict[tuple[Any, ...], list[str]] = {}
    for line in lines:
        arms.setdefault(cell_of(line), []).append(line["arm"])
    found = []
    for line in lines:
        row = {}
        for reference in (*compared_with(line["arm"], arms[cell_of(line)]), OTHERS):
            for kind in (DIFFERENCE, RATIO):
                row |= zip(column_names(reference, kind), lookup.find(line, reference, kind == RATIO), strict=True)
        found.append(row)
    names = [name for reference in COMPARED for kind in (DIFFERENCE, RATIO) for name in column_names(reference, kind)]
    beside = pd.DataFrame(found, columns=names, index=summary.index)
    own = [name for name in summary.columns if name not in _LAST]
    return pd.concat([summary[own], beside, summary[[name for name in _LAST if name in summary]]], axis=1)


def from_wide(wide: pd.DataFrame) -> Summarised:
    """The inverse of `wide_summary`, for the tables of an earlier version, which may lack some of its columns."""
    kinds = [(reference, kind) for reference in COMPARED for kind in (DIFFERENCE, RATIO)]
    numbers = {name for which in kinds for name in column_names(*which)}
    identity = [name for name in wide.columns if name in ("sweep", "world", "trait", "arm") or "." in name]
    wide = wide.reset_index(drop=True)
    parts = []
    for reference, kind in kinds:
        names = list(column_names(reference, kind))
        rows = wide.reindex(columns=names).set_axis(list(Comparison._fields), axis=1)
        rows = rows[rows["estimate"].notna()].astype(float).fillna({"pairs": 0}).astype({"pairs": int})
        rows.insert(0, "reference", reference)
        rows.insert(1, "kind", kind)
        parts.append(rows)
    found = pd.concat(parts).sort_index(kind="stable")
    comparisons = wide[identity].iloc[found.index].reset_index(drop=True).join(found.reset_index(drop=True))
    return Summarised(wide[[name for name in wide.columns if name not in numbers]], comparisons)


class Columns(NamedTuple):
    """What a comparison is called in the wide table."""

    value: str
    low: str
    high: str
    p: str
    p_holm: str
    pairs: str


def column_names(reference: str, kind: str) -> Columns:
    """The columns of a `Comparison`, field by field."""
    value, p, pairs = f"diff_{reference}", f"p_{reference}", f"pairs_{reference}"
    if kind == RATIO:
        value, p, pairs = f"ratio_{reference}", f"p_ratio_{reference}", f"pairs_ratio_{reference}"
    return Columns(value, f"{value}_low", f"{value}_high", p, f"{p}_holm", pairs)
