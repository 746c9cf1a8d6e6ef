"""What a sweep says in numbers: means with intervals, and comparisons of arms with their tests.

The unit of replication is the base that wrote the data (`units.py`). Comparisons are paired by base: both arms learn
from the same base's lineage.
"""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from subl_jax.errors import InputError
from subl_jax.results.cells import Cells, distinct_cells, equal, equals, hashable, key_of, ordered_arms, references
from subl_jax.results.units import by_base, lost_pairs
from subl_jax.statistics.intervals import check_method, interval
from subl_jax.statistics.tests import holm, paired_p

POOLED = "all"
# Traits whose P starts below it are compared by factors: most words of a language are rare, and some much rarer.
RARE = 0.05

# What arms are compared with: other arms, and students of the same arm whose teachers have other traits.
OTHERS = "others"
COMPARED = ("cross_init", "control", OTHERS, "cross_control", "same_init")
DIFFERENCE, RATIO = "difference", "ratio"
_NEEDED = ("sweep", "world", "arm", "trait", "base_seed", "student_base_seed", "status", "target_start", "target_end")


class Comparison(NamedTuple):
    """One arm beside one reference: the numbers of a row of `comparisons.parquet`.

    estimate, low, high: the mean over pairs of bases, and its interval. p: of the paired t test. p_holm: adjusted over
    the traits of the cell and arm; NaN for all traits together, which is one test. pairs: of bases.
    """

    estimate: float = np.nan
    low: float = np.nan
    high: float = np.nan
    p: float = np.nan
    p_holm: float = np.nan
    pairs: int = 0

    @property
    def adjusted(self) -> float:
        """The p-value to be shown: `p_holm` where there is one."""
        return self.p if np.isnan(self.p_holm) else self.p_holm


_NONE = Comparison()
_TYPES = dict.fromkeys(Comparison._fields[:-1], float) | {"pairs": int}


class Summarised(NamedTuple):
    """The tables `summary` and `comparisons`."""

    summary: pd.DataFrame
    comparisons: pd.DataFrame


def summarise(runs: pd.DataFrame, confidence: float = 0.95, method: str = "t") -> Summarised:
    """The means of every arm, and the comparisons between arms.

    The summary has one row per (sweep, world, swept fields, trait, arm), trait "all" first:
      n_runs, n_diverged, n_failed: all runs, and those of them that did not end well and enter nothing else.
      n: bases behind the mean.
      left_out: of "all": the (trait, base) pairs that it leaves out in every arm, as some arm of the cell has lost its
        runs there (`units.lost_pairs`); else 0.
      target_start, mean, ci_low, ci_high: P(trait) before training and after, averaged within a base first.
      others: the same after training of students of the arm whose teachers have other traits (`runs.others_end`).
      confidence, interval: the level and the method of all intervals, those of comparisons too. Intervals of means are
        on the logit scale (`intervals.probability_intervals`), those of differences are not.

    Comparisons have one row per row of the summary, reference and kind, where both have a base in common:
      reference: `cross_init` and `control` for same_init, `cross_control` for cross_init, `same_init` and `control` for
        a defence. It is `same_init` for a cross_init whose cell has no same_init of its own, as of models with more and
        less noise. It is `others` for every arm that has such students.
      kind: "difference", this arm's P(trait) after training minus the reference's; "ratio", of gains, P after over P
        before training: how many times the reference's the arm's is. Means of ratios are geometric, over bases and
        traits, and tests are of logarithms. A P of 0 has no gain.
      and the fields of `Comparison`.

    "all" averages over traits within a base first, and over the same pairs in every arm; its comparisons use only the
    (trait, base) pairs that both arms have, so that a missing run does not shift the mix of traits. Runs without a
    trait are left out.
    """
    missing = [name for name in _NEEDED if name not in runs.columns]
    if missing:
        raise InputError(f"runs table: lacks the columns {', '.join(missing)}")
    check_method(method)
    runs = hashable(runs[runs["trait"].notna()])
    runs = runs.assign(gain=gain(runs["target_start"], runs["target_end"]))
    grid = Cells.of(runs)
    lines: list[_Line] = []
    for sweep, rows in runs.groupby("sweep", sort=False):
        for cell in distinct_cells(rows, grid.swept):
            exact = rows[np.logical_and.reduce([equals(rows[field], value) for field, value in cell.items()])]
            # Every arm's runs that this cell may be compared with, those of free fields included.
            around = grid.select(rows, cell)
            arms, in_cell = ordered_arms(exact), []
            for arm in arms:
                label = {"sweep": sweep, **cell, "arm": arm}
                compared = compared_with(arm, arms)
                in_cell += _arm_lines(label, exact[exact["arm"] == arm], around, compared, confidence, method)
            order = [POOLED, *exact["trait"].unique()]
            lines += sorted(in_cell, key=lambda line: order.index(line.values["trait"]))
    identity = ["sweep", "world", *grid.swept, "trait", "arm"]
    counts = ["n_runs", "n", "n_diverged", "n_failed", "left_out"]
    ends = ["target_start", "mean", "ci_low", "ci_high", "others"]
    summary = pd.DataFrame([line.values for line in lines], columns=[*identity, *counts, *ends])
    made = [
        (i, reference, kind, comparison)
        for i, line in enumerate(lines)
        for (reference, kind), comparison in line.comparisons.items()
        if comparison.pairs
    ]
    own = summary[identity].iloc[[i for i, *_ in made]].reset_index(drop=True)
    own = own.assign(reference=[each[1] for each in made], kind=[each[2] for each in made])
    numbers = pd.DataFrame([each[3] for each in made], columns=list(Comparison._fields)).astype(_TYPES)
    return Summarised(summary.assign(confidence=confidence, interval=method), own.join(numbers))


class _Line(NamedTuple):
    """A row of the summary, and its comparisons by reference and kind."""

    values: dict[str, Any]
    comparisons: dict[tuple[str, str], Comparison]


def compared_with(arm: str, arms: Sequence[str]) -> list[str]:
    """The arms that `arm` is compared with in a cell that has rows of `arms`."""
    return [
        other
        for other in references(arm)
        if (arm, other) != ("cross_init", "same_init") or "same_init" not in arms  # whose row says it already
    ]


def _arm_lines(
    label: dict[str, Any],
    own: pd.DataFrame,
    around: pd.DataFrame,
    compared: Sequence[str],
    confidence: float,
    method: str,
) -> list[_Line]:
    """One arm in one cell, beside those it is compared with: a line per trait, then "all"."""
    traits = list(own["trait"].unique())
    end = by_base(own).reindex(traits)
    start = by_base(own, "target_start").reindex(traits)
    own = own.assign(**{name: np.nan for name in ("others_end", "others_gain") if name not in own})
    others = by_base(own, "others_end").reindex(traits)
    lost = lost_pairs(around[around["trait"].isin(traits)])
    gone = set(lost.itertuples(index=False, name=None))

    def bases_of(table: pd.DataFrame, trait: str) -> pd.Series:
        if trait == POOLED and gone:
            table = table.mask(np.array([[(row, base) in gone for base in table.columns] for row in table.index]))
        return _bases(table, trait)

    def beside(value: str, of_others: str) -> dict[str, pd.DataFrame]:
        tables = {arm: by_base(around[around["arm"] == arm], value) for arm in compared}
        tables[OTHERS] = by_base(own, of_others)
        ordered = {arm: tables[arm] for arm in COMPARED if arm in tables}
        return {arm: (by_base(own, value) - table).reindex(traits) for arm, table in ordered.items()}

    differences, ratios = beside("target_end", "others_end"), beside("gain", "others_gain")

    lines = []
    for trait in [*traits, POOLED]:
        of_trait = own if trait == POOLED else own[own["trait"] == trait]
        mean, low, high = interval(bases_of(end, trait), confidence, method, probability=True)
        values = label | {
            "trait": trait,
            "n_runs": len(of_trait),
            "n": int(bases_of(end, trait).count()),
            "n_diverged": int((of_trait["status"] == "diverged").sum()),
            "n_failed": int((of_trait["status"] == "failed").sum()),
            "left_out": len(lost) if trait == POOLED else 0,
            "target_start": bases_of(start, trait).mean(),
            "others": bases_of(others, trait).mean(),
            **dict(zip(("mean", "ci_low", "ci_high"), (mean, low, high), strict=True)),
        }
        found = {}
        for arm in differences:
            for kind, table, shown in ((DIFFERENCE, differences[arm], np.asarray), (RATIO, ratios[arm], np.exp)):
                pairs = _bases(table, trait).dropna()
                estimate = map(float, shown(interval(pairs, confidence, method)))
                found[arm, kind] = Comparison(*estimate, p=paired_p(pairs), pairs=len(pairs))
        lines.append(_Line(values, found))
    for which in lines[-1].comparisons:
        adjusted = holm([line.comparisons[which].p for line in lines[:-1]])
        for line, value in zip(lines, adjusted, strict=False):
            line.comparisons[which] = line.comparisons[which]._replace(p_holm=float(value))
    return lines


def _bases(table: pd.DataFrame, trait: str) -> pd.Series:
    """One value per base: of a trait, or averaged over traits."""
    return table.mean(axis=0) if trait == POOLED else table.loc[trait]


def gain(before: pd.Series, after: pd.Series) -> pd.Series:
    """The logarithm of a probability over what it was; NaN where one of them is 0 or missing."""
    return np.log(after.where(after > 0).astype(float)) - np.log(before.where(before > 0).astype(float))


# --- finding comparisons ---


class Lookup:
    """Finds the comparison of a row of the summary with a reference."""

    def __init__(self, comparisons: pd.DataFrame) -> None:
        numbers = ("reference", "kind", *Comparison._fields)
        self._identity = [name for name in comparisons.columns if name not in numbers]
        self._found: dict[tuple[Any, ...], Comparison] = {}
        for row in comparisons.to_dict("records"):
            made = Comparison(*(row[name] for name in Comparison._fields))
            self._found.setdefault((*self._place(row), row["reference"], row["kind"]), made)

    def find(self, line: Mapping[str, Any], reference: str, rare: bool) -> Comparison:
        """By ratios for rare traits, else by differences; without numbers where there is none."""
        return self._found.get((*self._place(line), reference, RATIO if rare else DIFFERENCE), _NONE)

    def _place(self, line: Mapping[str, Any]) -> tuple[Any, ...]:
        return tuple(key_of(line.get(name)) for name in self._identity)


def are_rare(summary: pd.DataFrame, comparisons: pd.DataFrame) -> bool:
    """Whether the traits of these lines of a summary are to be compared by factors: all are rare, and none is gone."""
    known = summary.reindex(columns=["target_start", "mean"]).dropna()
    kinds = set(comparisons.get("kind", ()))
    if known.empty or kinds == {DIFFERENCE}:  # as in tables of an earlier version
        return False
    return rare(known["target_start"], known.stack())


def left_out(summary: pd.DataFrame) -> int:
    """How many (trait, base) pairs "all" leaves out at most in these lines of a summary, also of an earlier version."""
    return int(summary["left_out"].max()) if len(summary) and "left_out" in summary else 0


def pairs_in_words(count: int) -> str:
    return f"{count} pair{'s'[: count != 1]} of trait and base, where a run did not end well"


def rare(before: pd.Series, all_values: pd.Series) -> bool:
    """Whether probabilities are to be compared by factors: all before training are small, and none is ever 0."""
    return bool((before.dropna() < RARE).all() and (all_values.dropna() > 0).all())


def compared(comparisons: pd.DataFrame) -> list[str]:
    """What some arm is compared with, in the order of columns."""
    there = set(comparisons.get("reference", ()))
    return [name for name in COMPARED if name in there]


def in_cell(grid: Cells, tables: Summarised, cell: dict[str, Any]) -> Summarised:
    """The rows that belong to `cell`, where same_init is compared with the cross_init of this cell.

    A line of same_init belongs to every version of another start, and is compared with one at most; comparisons with
    the others are those of cross_init, turned round.
    """
    lines, own = (grid.select(table, cell) for table in tables)
    of_same = (own["arm"] == "same_init") & (own["reference"] == "cross_init")
    of_cross = (own["arm"] == "cross_init") & (own["reference"] == "same_init")
    identity = ["sweep", *grid.swept, "trait"]
    cross = {(row["sweep"], row["trait"]): row for row in lines[lines["arm"] == "cross_init"].to_dict("records")}
    added = []
    for line in lines[lines["arm"] == "same_init"].to_dict("records"):
        other = cross.get((line["sweep"], line["trait"]))
        mine = of_same & np.logical_and.reduce([equals(own[name], line[name]) for name in identity])
        if other is not None and all(equal(other[field], line[field]) for field in grid.swept):
            continue
        own, of_same, of_cross = own[~mine], of_same[~mine], of_cross[~mine]
        if other is not None:
            theirs = of_cross & np.logical_and.reduce([equals(own[name], other[name]) for name in identity])
            added += [_turned(row) | {name: line[name] for name in identity} for row in own[theirs].to_dict("records")]
    own = own[~of_cross]
    return Summarised(lines, pd.concat([own, pd.DataFrame(added, columns=own.columns)]) if added else own)


def _turned(row: dict[str, Any]) -> dict[str, Any]:
    """The comparison of same_init with cross_init, from that of cross_init with same_init."""
    ends = (row["estimate"], row["high"], row["low"])
    estimate, low, high = (1 / end if row["kind"] == RATIO else -end for end in ends)
    return row | {"arm": "same_init", "reference": "cross_init", "estimate": estimate, "low": low, "high": high}
