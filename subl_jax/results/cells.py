"""Arms, swept fields, and the cells that they span: which runs are compared with which."""

import collections
import dataclasses
from collections.abc import Sequence
from typing import Any, Self

import numpy as np
import pandas as pd

from subl_jax.results.units import replication_unit

CORE_ARMS = ("same_init", "cross_init", "control", "cross_control")
_OF_ANOTHER_START = ("cross_init", "cross_control")


def references(arm: str) -> tuple[str, ...]:
    """The arms that `arm` is compared with; every arm beyond the core ones is a defence against `same_init`."""
    if arm == "same_init":
        return ("cross_init", "control")
    if arm == "cross_init":
        return ("cross_control", "same_init")
    return () if arm in CORE_ARMS else ("same_init", "control")


def ordered_arms(runs: pd.DataFrame) -> list[str]:
    """The arms that occur: the core ones first, then the others as they come."""
    present = list(runs["arm"].unique())
    return [arm for arm in CORE_ARMS if arm in present] + [arm for arm in present if arm not in CORE_ARMS]


def swept_columns(runs: pd.DataFrame) -> list[str]:
    """Lineage fields (dotted columns) that vary within a (world, arm, trait, base), seeds and traits aside.

    A field that only differs between arms or worlds, such as a teacher's field that controls lack, is not swept. Nor is
    one that goes with the base, such as the hash of a file that each base has of its own, be it one for every value of
    another swept field: its runs are repetitions of one setting.
    """
    lineage = [name for name in runs.columns if "." in name and not name.endswith(("seed", ".trait"))]
    if not lineage or runs.empty:
        return []
    # A missing value counts as one: full fine-tuning (no rank) and rank 8 are two cells.
    table = hashable(runs[lineage])
    lineage = [name for name in lineage if table[name].nunique(dropna=False) > 1]
    bars = runs.groupby(["world", "arm", "trait"], dropna=False).ngroup()
    table = table[lineage].assign(bar=bars, base=replication_unit(runs))
    # Which rows are equal is all that counts, and numbers are compared much faster.
    table = table.apply(lambda column: pd.factorize(column, use_na_sentinel=False)[0])
    swept = [name for name in lineage if not _decided(table, name, ["bar", "base"])]
    for name in list(swept):
        others = [other for other in swept if other != name]
        if others and _goes_with_base(table, name, others):
            swept.remove(name)
    return swept


def _decided(table: pd.DataFrame, name: str, by: Sequence[str]) -> bool:
    """Whether rows that are equal in `by` have one value of the field `name`."""
    rows = table[[*by, name]].drop_duplicates()
    return not rows.duplicated(list(by)).any()


def _goes_with_base(table: pd.DataFrame, name: str, others: Sequence[str]) -> bool:
    """Whether, the other fields given, the field `name` is decided by the base, and always differs between bases."""
    if not _decided(table, name, ["bar", "base", *others]):
        return False
    groups = table.groupby(["bar", *others], dropna=False)
    several = groups["base"].nunique() > 1
    return bool(several.any() and (groups[name].nunique(dropna=False)[several] > 1).all())


@dataclasses.dataclass(frozen=True)
class Cells:
    """The combinations of world and swept fields that occur, and which runs belong to each.

    A run belongs to a cell when it has the cell's values. Two kinds of fields do not count for an arm: a field that no
    run of the arm has (a control has no teacher, so it belongs to every setting of the teacher), and, for the core
    arms, a field that only other arms vary (a defence's strength: every strength is compared with the undefended arms;
    the noise of the models that `cross_init` starts from: every strength is compared with the same initialisation).

    Attributes:
      swept: the swept fields.
      cells: one mapping from "world" and every swept field to its value each; cells whose every run also belongs to
        another cell are left out.
      free: (world, arm, field) of the fields that do not count.
    """

    swept: tuple[str, ...]
    cells: tuple[dict[str, Any], ...]
    free: frozenset[tuple[str, str, str]]

    @classmethod
    def of(cls, runs: pd.DataFrame) -> Self:
        runs, swept = hashable(runs), tuple(swept_columns(runs))
        free = {
            (world, arm, field)
            for (world, arm), rows in runs.groupby(["world", "arm"])
            for field in swept
            if rows[field].isna().all()
        }
        of_one_start = [arm for arm in CORE_ARMS if arm not in _OF_ANOTHER_START]
        for arms in (CORE_ARMS, of_one_start):
            for world, rows in runs[runs["arm"].isin(arms)].groupby("world"):
                for field in swept:
                    within = rows.groupby("arm")[field].nunique(dropna=False)
                    if rows[field].nunique() <= 1 and within.max() == 1:
                        free |= {(world, arm, field) for arm in rows["arm"].unique()}
        cells = distinct_cells(runs, swept)
        return cls(swept, tuple(_uncovered(runs, cells, swept, free)), frozenset(free))

    def select(self, rows: pd.DataFrame, cell: dict[str, Any]) -> pd.DataFrame:
        """The rows of `rows` (runs, or lines of a summary) that belong to `cell`."""
        world = cell["world"]
        keep = rows["world"] == world
        for field in self.swept:
            free_arms = [arm for (at, arm, name) in self.free if (at, name) == (world, field)]
            keep &= equals(rows[field], cell[field]) | rows["arm"].isin(free_arms)
        return rows[keep]


def distinct_cells(runs: pd.DataFrame, swept: Sequence[str]) -> list[dict[str, Any]]:
    """Every combination of world and swept values that a run has, sorted where the values can be."""
    fields = ["world", *swept]
    table = hashable(runs)[fields].drop_duplicates()
    table = table.sort_values(fields, key=lambda column: column if _sortable(column) else column.astype(str))
    return [dict(zip(fields, values, strict=True)) for values in table.itertuples(index=False, name=None)]


def cell_name(cell: dict[str, Any]) -> str:
    """The swept fields of a cell in words, such as "student.train.lr = 0.001, data.size = 4000"; "" for none."""
    return ", ".join(
        f"{field} = {_plain(value)}" for field, value in cell.items() if field != "world" and not is_missing(value)
    )


def _uncovered(
    runs: pd.DataFrame, cells: list[dict[str, Any]], swept: Sequence[str], free: set[tuple[str, str, str]]
) -> list[dict[str, Any]]:
    """The cells with at least one run that belongs to no other cell."""
    keyed = [tuple(key_of(value) for value in cell.values()) for cell in cells]
    fields = ["world", *swept]
    arms = collections.defaultdict(set)
    for *values, arm in runs[[*fields, "arm"]].drop_duplicates().itertuples(index=False, name=None):
        arms[tuple(map(key_of, values))].add(arm)
    kept = []
    for cell, key in zip(cells, keyed, strict=True):
        fixed = [
            i
            for i, field in enumerate(fields)
            if field == "world" or any((cell["world"], arm, field) not in free for arm in arms[key])
        ]
        alike = sum(all(other[i] == key[i] for i in fixed) for other in keyed) if len(fixed) < len(fields) else 1
        if alike == 1:
            kept.append(cell)
    return kept


def hashable(runs: pd.DataFrame) -> pd.DataFrame:
    """`runs` with lists and arrays (which tuples become in a file) as text, so that they can be grouped."""
    mixed = [name for name in runs.columns if runs[name].dtype == object]
    return runs.assign(**{name: runs[name].map(_text) for name in mixed})


def _text(value: Any) -> Any:
    if isinstance(value, np.ndarray):
        value = value.tolist()
    return str(tuple(value)) if isinstance(value, list | tuple) else str(value) if isinstance(value, dict) else value


def _sortable(column: pd.Series) -> bool:
    return pd.api.types.is_numeric_dtype(column)


def is_missing(value: Any) -> bool:
    return value is None or value is pd.NA or (isinstance(value, float) and np.isnan(value))


def key_of(value: Any) -> Any:
    """A value that can be looked up: None where it is missing, since NaN is not equal to itself."""
    return None if is_missing(value) else value


def equal(one: Any, other: Any) -> bool:
    return (is_missing(one) and is_missing(other)) or bool(one == other)


def _plain(value: Any) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)


def equals(column: pd.Series, value: Any) -> pd.Series:
    if is_missing(value):
        return column.isna()
    return (column.map(_text) if column.dtype == object else column).eq(value).fillna(False).astype(bool)
