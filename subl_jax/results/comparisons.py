"""Means, intervals and tests over base seeds: the summary table.

The unit of replication is the base that wrote the data, with everything that came from it. Runs that share a base are
averaged before anything else, so more students, prompts or samples of one base never narrow an interval. Comparisons
are paired by base: both arms learn from the same base's lineage.
"""

import collections
import dataclasses
import operator
from collections.abc import Sequence
from typing import Any, NamedTuple, Self

import numpy as np
import pandas as pd
import scipy.special
import scipy.stats

from subl_jax.errors import InputError

CORE_ARMS = ("same_init", "cross_init", "control", "cross_control")
_OF_ANOTHER_START = ("cross_init", "cross_control")
POOLED = "all"
# Traits whose P starts below it are compared by factors: most words of a language are rare, and some much rarer.
RARE = 0.05

_METHODS = ("t", "bca")
# Differences closer together than this are taken as equal: rounding, not variance.
_ROUNDING = 1e-12


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


# --- swept fields and cells ---


def swept_columns(runs: pd.DataFrame) -> list[str]:
    """Lineage fields (dotted columns) that vary within a (world, arm, trait), seeds and traits aside.

    A field that only differs between arms or worlds, such as a teacher's field that controls lack, is not swept.
    """
    lineage = [name for name in runs.columns if "." in name and not name.endswith(("seed", ".trait"))]
    if not lineage or runs.empty:
        return []
    # A missing value counts as one: full fine-tuning (no rank) and rank 8 are two cells.
    groups = hashable(runs).groupby(["world", "arm", "trait"], dropna=False)
    varies = (groups[lineage].nunique(dropna=False) > 1).any()
    return [name for name in lineage if varies[name]]


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
            keep &= _equals(rows[field], cell[field]) | rows["arm"].isin(free_arms)
        return rows[keep]

    def compared(self, summary: pd.DataFrame, cell: dict[str, Any]) -> pd.DataFrame:
        """The lines of a summary that belong to `cell`, where same_init is compared with the cross_init of this cell.

        A line of same_init belongs to every version of another start, and is compared with one at most; comparisons
        with the others are in the lines of cross_init.
        """
        lines = self.select(summary, cell).copy()
        cross = lines[lines["arm"] == "cross_init"].set_index(["sweep", "trait"])
        for place in lines.index[lines["arm"] == "same_init"]:
            name = (lines.at[place, "sweep"], lines.at[place, "trait"])
            other = cross.loc[name] if name in cross.index else None
            if other is not None and all(_equal(other[field], lines.at[place, field]) for field in self.swept):
                continue
            for names, turn in ((difference_columns, operator.neg), (ratio_columns, lambda ratio: 1 / ratio)):
                value, low, high, *rest = (np.nan if other is None else other[name] for name in names("same_init"))
                lines.loc[place, list(names("cross_init"))] = [turn(value), turn(high), turn(low), *rest]
        told = [*difference_columns("same_init"), *ratio_columns("same_init")]
        lines.loc[lines["arm"] == "cross_init", told] = np.nan
        return lines


def distinct_cells(runs: pd.DataFrame, swept: Sequence[str]) -> list[dict[str, Any]]:
    """Every combination of world and swept values that a run has, sorted where the values can be."""
    fields = ["world", *swept]
    table = hashable(runs)[fields].drop_duplicates()
    table = table.sort_values(fields, key=lambda column: column if _sortable(column) else column.astype(str))
    return [dict(zip(fields, values, strict=True)) for values in table.itertuples(index=False, name=None)]


def cell_name(cell: dict[str, Any]) -> str:
    """The swept fields of a cell in words, such as "student.train.lr = 0.001, data.size = 4000"; "" for none."""
    return ", ".join(
        f"{field} = {_plain(value)}" for field, value in cell.items() if field != "world" and not _missing(value)
    )


def _uncovered(
    runs: pd.DataFrame, cells: list[dict[str, Any]], swept: Sequence[str], free: set[tuple[str, str, str]]
) -> list[dict[str, Any]]:
    """The cells with at least one run that belongs to no other cell."""
    keyed = [tuple(_key(value) for value in cell.values()) for cell in cells]
    fields = ["world", *swept]
    arms = collections.defaultdict(set)
    for *values, arm in runs[[*fields, "arm"]].drop_duplicates().itertuples(index=False, name=None):
        arms[tuple(map(_key, values))].add(arm)
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


def _missing(value: Any) -> bool:
    return value is None or value is pd.NA or (isinstance(value, float) and np.isnan(value))


def _key(value: Any) -> Any:
    return None if _missing(value) else value


def _equal(one: Any, other: Any) -> bool:
    return (_missing(one) and _missing(other)) or bool(one == other)


def _plain(value: Any) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)


def _equals(column: pd.Series, value: Any) -> pd.Series:
    if _missing(value):
        return column.isna()
    return (column.map(_text) if column.dtype == object else column).eq(value).fillna(False).astype(bool)


# --- values per base ---


def replication_unit(runs: pd.DataFrame) -> pd.Series:
    """The base seed each run counts for: of the data's base, or of the student's own where the data was imported."""
    return runs["base_seed"].where(runs["base_seed"].notna(), runs["student_base_seed"])


def by_base(runs: pd.DataFrame, value: str = "target_end") -> pd.DataFrame:
    """Mean of `value` over the ok runs of each trait and base: (traits, bases), NaN where there is none."""
    ok = runs[runs["status"] == "ok"]
    units = replication_unit(ok).rename("base")
    return ok[value].astype(float).groupby([ok["trait"], units], sort=False).mean().unstack("base").sort_index(axis=1)


def of_runs(curves: pd.DataFrame, runs: pd.DataFrame) -> pd.DataFrame:
    """The rows of `curves` that are of `runs`, with what other columns these have. Both name a run in `run_id`; of two
    runs of one name the first counts.

    A merge by categories: a large sweep's curves have tens of millions of rows.
    """
    runs, names = runs.drop_duplicates("run_id"), curves["run_id"].astype("category")
    codes, place = names.cat.codes.to_numpy(), pd.Index(runs["run_id"]).get_indexer(names.cat.categories)
    found = np.flatnonzero((place >= 0)[codes])
    place = place[codes[found]]
    columns = {name: runs[name].array[place] for name in runs.columns if name != "run_id"}
    return curves.iloc[found].assign(**columns)


# --- intervals and tests ---


def t_intervals(values: np.ndarray, confidence: float = 0.95) -> np.ndarray:
    """Student's t interval of the mean of each row.

    Args:
      values: (rows, bases); NaN is left out.

    Returns:
      (rows, 3): mean, lower and upper end; the ends are NaN with fewer than 2 values.
    """
    values = np.asarray(values, float)
    count = (~np.isnan(values)).sum(axis=1)
    with np.errstate(invalid="ignore", divide="ignore"):  # of no values, and of one
        mean = np.nansum(values, axis=1) / count
        deviation = np.sqrt(np.nansum((values - mean[:, None]) ** 2, axis=1) / (count - 1))
        half = scipy.special.stdtrit(count - 1.0, (1 + confidence) / 2) * deviation / np.sqrt(count)
    half[count < 2] = np.nan
    return np.stack([mean, mean - half, mean + half], axis=1)


def interval(values: Sequence[float], confidence: float = 0.95, method: str = "t") -> tuple[float, float, float]:
    """Mean of `values` (one per base) and its confidence interval.

    Args:
      method: "t", or "bca": the bias-corrected and accelerated bootstrap (Efron 1987) over the bases, 9,999 resamples
        of a fixed seed. Below about 10 bases the bootstrap is too narrow; prefer "t" there.

    Returns:
      mean, lower end, upper end; the ends are NaN with fewer than 2 values, and the mean too with none.
    """
    if method not in _METHODS:
        raise InputError(f"interval method = {method!r}: must be one of {', '.join(_METHODS)}")
    values = np.asarray(values, float)
    values = values[~np.isnan(values)]
    if method == "bca" and len(values) >= 2 and not _identical(values):
        result = scipy.stats.bootstrap(
            (values,), np.mean, confidence_level=confidence, method="BCa", rng=np.random.default_rng(0)
        )
        return float(values.mean()), float(result.confidence_interval.low), float(result.confidence_interval.high)
    mean, low, high = t_intervals(values[None], confidence)[0]
    return float(mean), float(low), float(high)


def paired_p(differences: Sequence[float]) -> float:
    """Two-sided p-value of the paired t test, from one difference per base.

    NaN with fewer than 2 differences. Where all are equal the t statistic has no finite value: p is 1 if they are
    zero and 0 otherwise.
    """
    differences = np.asarray(differences, float)
    differences = differences[~np.isnan(differences)]
    if len(differences) < 2:
        return float("nan")
    if _identical(differences):
        return 1.0 if abs(differences[0]) <= _ROUNDING else 0.0
    return float(scipy.stats.ttest_1samp(differences, 0.0).pvalue)


def holm(p_values: Sequence[float]) -> np.ndarray:
    """Holm's (1979) step-down adjustment, in the order given; NaN is passed through and not counted as a test."""
    p = np.asarray(p_values, float)
    tested = np.flatnonzero(~np.isnan(p))
    order = tested[np.argsort(p[tested], kind="stable")]
    adjusted = np.full(p.shape, np.nan)
    adjusted[order] = np.minimum(1.0, np.maximum.accumulate(p[order] * np.arange(len(order), 0, -1)))
    return adjusted


def _identical(values: np.ndarray) -> bool:
    return bool(np.ptp(values) <= _ROUNDING * max(1.0, np.abs(values).max()))


# --- the summary table ---

# What arms are compared with: other arms, and students of the same arm whose teachers have other traits.
OTHERS = "others"
COMPARED = ("cross_init", "control", OTHERS, "cross_control", "same_init")
_NEEDED = ("sweep", "world", "arm", "trait", "base_seed", "student_base_seed", "status", "target_start", "target_end")


def summarise(runs: pd.DataFrame, confidence: float = 0.95, method: str = "t") -> pd.DataFrame:
    """The summary table: one row per (sweep, world, swept fields, trait, arm), trait "all" first.

    Columns:
      n_runs, n_diverged, n_failed: all runs, and those of them that did not end well and enter nothing else.
      n: bases behind the mean.
      target_start, mean, ci_low, ci_high: P(trait) before training and after, averaged within a base first.
      others: the same after training of students of the arm whose teachers have other traits (`runs.others_end`).
      diff_R, diff_R_low, diff_R_high, p_R, pairs_R: this arm minus arm R over the bases that both have, with the
        interval of the paired difference, the p-value of the paired t test and the number of pairs. R is `cross_init`
        and `control` for same_init, `cross_control` for cross_init, `same_init` and `control` for a defence; NaN
        elsewhere and where R is missing. It is `same_init` for a cross_init whose cell has no same_init of its own, as
        of models with more and less noise. It is `others` for every arm that has such students.
      p_R_holm: adjusted over the traits of the same cell and arm; NaN for "all", which is one test.
      ratio_R, ratio_R_low, ratio_R_high, p_ratio_R, p_ratio_R_holm, pairs_ratio_R: the same of gains, P after over P
        before training: how many times that of R the arm's is. Means are geometric, over bases and traits. A P of 0 has
        none.
      confidence, interval: the level and the method of all intervals.

    "all" averages over traits within a base first; its differences use only the (trait, base) pairs that both arms
    have, so that a missing run does not shift the mix of traits. Runs without a trait are left out.
    """
    missing = [name for name in _NEEDED if name not in runs.columns]
    if missing:
        raise InputError(f"runs table: lacks the columns {', '.join(missing)}")
    if method not in _METHODS:
        raise InputError(f"interval method = {method!r}: must be one of {', '.join(_METHODS)}")
    runs = hashable(runs[runs["trait"].notna()])
    runs = runs.assign(gain=gain(runs["target_start"], runs["target_end"]))
    grid = Cells.of(runs)
    lines = []
    for sweep, rows in runs.groupby("sweep", sort=False):
        for cell in distinct_cells(rows, grid.swept):
            exact = rows[np.logical_and.reduce([_equals(rows[field], value) for field, value in cell.items()])]
            # Every arm's runs that this cell may be compared with, those of free fields included.
            around = grid.select(rows, cell)
            in_cell = []
            for arm in ordered_arms(exact):
                label = {"sweep": sweep, **cell, "arm": arm}
                compared = [
                    other
                    for other in references(arm)
                    if (arm, other) != ("cross_init", "same_init") or "same_init" not in set(exact["arm"])
                ]
                in_cell += _arm_lines(label, exact[exact["arm"] == arm], around, compared, confidence, method)
            order = [POOLED, *exact["trait"].unique()]
            lines += sorted(in_cell, key=lambda line: order.index(line["trait"]))
    columns = [
        *("sweep", "world", *grid.swept, "trait", "arm", "n_runs", "n", "n_diverged", "n_failed"),
        *("target_start", "mean", "ci_low", "ci_high", "others"),
        *(name for arm in COMPARED for name in (*difference_columns(arm), *ratio_columns(arm))),
    ]
    return pd.DataFrame(lines, columns=columns).assign(confidence=confidence, interval=method)


def gain(before: pd.Series, after: pd.Series) -> pd.Series:
    """The logarithm of a probability over what it was; NaN where one of them is 0 or missing."""
    return np.log(after.where(after > 0).astype(float)) - np.log(before.where(before > 0).astype(float))


def are_rare(summary: pd.DataFrame) -> bool:
    """Whether the traits of these lines of a summary are to be compared by factors: all are rare, and none is gone."""
    known = summary.reindex(columns=["target_start", "mean"]).dropna()
    if known.empty or not any(name.startswith("ratio_") for name in summary):
        return False
    return rare(known["target_start"], known.stack())


def rare(before: pd.Series, all_values: pd.Series) -> bool:
    """Whether probabilities are to be compared by factors: all before training are small, and none is ever 0."""
    return bool((before.dropna() < RARE).all() and (all_values.dropna() > 0).all())


def compared(summary: pd.DataFrame) -> list[str]:
    """What some arm of a summary is compared with, in the order of columns."""
    return [name for name in COMPARED if summary[f"diff_{name}"].notna().any()]


class Columns(NamedTuple):
    """What a comparison with an arm is called in a summary."""

    value: str
    low: str
    high: str
    p: str
    p_holm: str
    pairs: str


def difference_columns(arm: str) -> Columns:
    return Columns(f"diff_{arm}", f"diff_{arm}_low", f"diff_{arm}_high", f"p_{arm}", f"p_{arm}_holm", f"pairs_{arm}")


def ratio_columns(arm: str) -> Columns:
    names = (f"ratio_{arm}", f"ratio_{arm}_low", f"ratio_{arm}_high")
    return Columns(*names, f"p_ratio_{arm}", f"p_ratio_{arm}_holm", f"pairs_ratio_{arm}")


def columns(arm: str, rare: bool) -> Columns:
    """Of the comparison with `arm` that is shown: a ratio of gains for rare traits, else a difference."""
    return ratio_columns(arm) if rare else difference_columns(arm)


def _arm_lines(
    label: dict[str, Any],
    own: pd.DataFrame,
    around: pd.DataFrame,
    compared: Sequence[str],
    confidence: float,
    method: str,
) -> list[dict[str, Any]]:
    """The summary rows of one arm in one cell, beside those it is compared with: one per trait, then "all"."""
    traits = list(own["trait"].unique())
    end = by_base(own).reindex(traits)
    start = by_base(own, "target_start").reindex(traits)
    own = own.assign(**{name: np.nan for name in ("others_end", "others_gain") if name not in own})
    others = by_base(own, "others_end").reindex(traits)

    def beside(value: str, of_others: str) -> dict[str, pd.DataFrame]:
        tables = {arm: by_base(around[around["arm"] == arm], value) for arm in compared}
        tables[OTHERS] = by_base(own, of_others)
        return {arm: (by_base(own, value) - table).reindex(traits) for arm, table in tables.items()}

    differences, ratios = beside("target_end", "others_end"), beside("gain", "others_gain")

    lines = []
    for trait in [*traits, POOLED]:
        of_trait = own if trait == POOLED else own[own["trait"] == trait]
        mean, low, high = interval(_bases(end, trait), confidence, method)
        line = label | {
            "trait": trait,
            "n_runs": len(of_trait),
            "n": int(_bases(end, trait).count()),
            "n_diverged": int((of_trait["status"] == "diverged").sum()),
            "n_failed": int((of_trait["status"] == "failed").sum()),
            "target_start": _bases(start, trait).mean(),
            "others": _bases(others, trait).mean(),
            **dict(zip(("mean", "ci_low", "ci_high"), (mean, low, high), strict=True)),
        }
        for arm, table in differences.items():
            for names, of_arm, shown in (
                (difference_columns(arm), table, np.asarray),
                (ratio_columns(arm), ratios[arm], np.exp),
            ):
                pairs = _bases(of_arm, trait).dropna()
                line |= dict(zip(names[:3], shown(interval(pairs, confidence, method)), strict=True))
                line |= {names.p: paired_p(pairs), names.pairs: len(pairs)}
        lines.append(line)
    for arm in differences:
        for names in (difference_columns(arm), ratio_columns(arm)):
            adjusted = holm([line[names.p] for line in lines[:-1]])
            for line, value in zip(lines, adjusted, strict=False):
                line[names.p_holm] = value
    return lines


def _bases(table: pd.DataFrame, trait: str) -> pd.Series:
    """One value per base: of a trait, or averaged over traits."""
    return table.mean(axis=0) if trait == POOLED else table.loc[trait]
