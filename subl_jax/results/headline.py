"""What the numbers of one cell say, in words that claim no more than the intervals do."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from subl_jax.results import comparisons
from subl_jax.results.cells import references
from subl_jax.results.formats import arm_label, compared_label, factor, number, p_value
from subl_jax.statistics.tests import holm

_FEW_BASES = 5  # below this, even a clear result is called provisional


class _Judge(NamedTuple):
    """Finds the comparisons of one cell; those of rare traits are of their gains, P after training over P before."""

    lookup: comparisons.Lookup
    rare: bool

    def between(self, row: Mapping[str, Any], arm: str) -> comparisons.Comparison:
        return self.lookup.find(row, arm, self.rare)

    def pairs(self, row: Mapping[str, Any], arm: str) -> int:
        """How many base seeds a comparison is paired over; 0 where there is none."""
        return self.between(row, arm).pairs


def headline(cell: comparisons.Summarised, base_rate: Mapping[str, float]) -> str:
    """What the pooled rows of one cell say, in words that claim no more than the intervals do."""
    summary = cell.summary
    judge = _Judge(comparisons.Lookup(cell.comparisons), comparisons.are_rare(*cell))
    pooled = summary[(summary["trait"] == comparisons.POOLED)]
    finished = pooled[pooled["mean"].notna()]
    if finished.empty:
        return f"No result: none of the {int(pooled['n_runs'].sum())} runs ended well."
    ends = {row["arm"]: row for row in finished.drop_duplicates("arm").to_dict("records")}
    chance = _chance(summary, base_rate)
    if "same_init" not in ends:
        parts = [f"{arm_label(arm)} students end at P(trait) = {_estimate(row)}" for arm, row in ends.items()]
        none = "ended well" if "same_init" in set(pooled["arm"]) else "are in it"
        text = f"No same-initialisation students {none}, so there is no transfer to judge. "
        return text + _sentence("; ".join(parts) + chance) + _of_other_start(ends, judge)
    same = ends["same_init"]
    text = (
        f"Same-initialisation students end at P(trait) = {_estimate(same)}, from "
        f"{number(same['target_start'])} before training{chance}."
    )
    if gone := comparisons.left_out(pooled):
        text += f" Means of all traits are without {comparisons.pairs_in_words(gone)}."
    compared = [arm for arm in references("same_init") if arm in ends and judge.pairs(same, arm) > 0]
    others = judge.pairs(same, comparisons.OTHERS)
    if not compared and not others:
        return f"Not compared: no other arm shares a base with them. {text}"
    for arm in compared:
        text += f" Against {_estimate(ends[arm])} for {arm_label(arm)}: {_difference(same, arm, judge)}."
    if others:
        text += (
            f" Against {number(same[comparisons.OTHERS])} for students of other teachers: "
            f"{_difference(same, comparisons.OTHERS, judge)}."
        )
        # From a single pair nothing is judged, which the other comparisons may still be.
        if others > 1 or not compared:
            compared.append(comparisons.OTHERS)
    for arm, row in ends.items():
        if "same_init" in references(arm) and judge.pairs(row, "same_init") > 0:
            difference = _difference(row, "same_init", judge)
            text += f" With {arm_label(arm)}: {_estimate(row)}, against same init {difference}."
    text += _of_other_start(ends, judge)
    return f"{_verdict(same, compared, judge)} {text}"


def adjusted(cells: Sequence[comparisons.Summarised]) -> list[comparisons.Summarised]:
    """The cells of a sweep with `p_holm` of their pooled rows, over all cells: of each arm and reference a test a cell.

    Of a cell those rows count that its verdict takes: ratios where its traits are rare, else differences.
    """
    tables = []
    for i, (summary, table) in enumerate(cells):
        kind = comparisons.RATIO if comparisons.are_rare(summary, table) else comparisons.DIFFERENCE
        pooled = (table["trait"] == comparisons.POOLED) & (table["kind"] == kind)
        tables.append(table.reset_index(drop=True).assign(cell=i, pooled=pooled.to_numpy()))
    if all(table.empty for table in tables):
        return list(cells)
    rows = pd.concat([table for table in tables if len(table)], ignore_index=True)
    for _, tests in rows[rows["pooled"]].groupby(["sweep", "arm", "reference"]):
        rows.loc[tests.index, "p_holm"] = holm(tests["p"])
    own = rows.drop(columns=["cell", "pooled"])
    return [comparisons.Summarised(cell.summary, own[rows["cell"] == i]) for i, cell in enumerate(cells)]


def _of_other_start(ends: Mapping[str, Mapping[str, Any]], judge: _Judge) -> str:
    """What students of another start gain beyond their own control, or nothing."""
    if not {"cross_init", "cross_control"} <= ends.keys() or not judge.pairs(ends["cross_init"], "cross_control"):
        return ""
    return (
        f" Of the other start, against {_estimate(ends['cross_control'])} without the trait: "
        f"{_difference(ends['cross_init'], 'cross_control', judge)}."
    )


def _verdict(same: Mapping[str, Any], compared: list[str], judge: _Judge) -> str:
    found = [judge.between(same, arm) for arm in compared]
    lows, highs = np.array([each.low for each in found]), np.array([each.high for each in found])
    pairs, nothing = min(judge.pairs(same, arm) for arm in compared), 1 if judge.rare else 0
    above, below, over = "ends above", "ends below", "above"
    if judge.rare:
        above, below, over = "gains more than", "gains less than", "more than"
    if np.isnan(lows).any():
        return "Too few base seeds to judge: with one pair there is no interval and no test."
    few = f" (only {pairs} base seeds: provisional)" if pairs < _FEW_BASES else ""
    names = _listed(map(compared_label, compared))
    if (lows > nothing).all():
        return f"Transfer: same init {above} {names}{few}."
    if (highs < nothing).all():
        return f"The opposite of transfer: same init {below} {names}{few}."
    if (lows > nothing).any():
        clear, rest = (
            _listed(compared_label(arm) for arm, low in zip(compared, lows, strict=True) if (low > nothing) == clearly)
            for clearly in (True, False)
        )
        return f"Unclear: same init {above} {clear}, but not clearly {over} {rest}{few}."
    comparison = "ratio" if judge.rare else "difference"
    return f"No transfer shown: the interval of the {comparison} includes {nothing} or lies below it{few}."


def _listed(names: Iterable[str]) -> str:
    *first, last = names
    return f"{', '.join(first)} and {last}" if first else last


def _difference(row: Mapping[str, Any], arm: str, judge: _Judge) -> str:
    """`row`'s arm minus `arm`, such as "+.101 [+.078, +.124], paired over 6 base seeds, p = .002"; or over it."""
    shown, found = factor if judge.rare else _signed, judge.between(row, arm)
    difference = shown(found.estimate) + (" its gain" if judge.rare else "")
    if found.pairs < 2:
        return f"{difference}, from 1 base seed"
    ends, p = f"{shown(found.low)}, {shown(found.high)}", p_value(found.adjusted)
    return f"{difference} [{ends}], paired over {found.pairs} base seeds, p {p if p[0] in '<>' else '= ' + p}"


def _estimate(row: Mapping[str, Any]) -> str:
    if np.isfinite(row["ci_low"]):
        return f"{number(row['mean'])} [{number(row['ci_low'])}, {number(row['ci_high'])}]"
    return f"{number(row['mean'])} (1 base seed)"


def _signed(value: float) -> str:
    return ("+" if value > 0 else "") + number(value)


def _chance(summary: pd.DataFrame, base_rate: Mapping[str, float]) -> str:
    rates = [base_rate[trait] for trait in summary["trait"].unique() if trait in base_rate]
    return f" (chance {number(float(np.mean(rates)))})" if rates else ""


def _sentence(text: str) -> str:
    return text[:1].upper() + text[1:] + "."
