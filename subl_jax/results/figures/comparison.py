"""P(trait) at the end, arm beside arm, with the p-values of their comparisons."""

from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from subl_jax.results import comparisons
from subl_jax.results.figures import style
from subl_jax.results.figures.base import Figure, Tables, level, partly, replication, without
from subl_jax.results.formats import compared_label, p_value
from subl_jax.results.units import by_base, complete

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure as Drawn

MOST_BARS = 24  # traits in the comparison


class Comparison(Figure):
    name = "comparison"
    place = 20

    def draw(self, tables: Tables) -> "Drawn | None":
        return comparison(tables.runs, tables.summary, tables.comparisons, tables.base_rate, tables.colours)

    def caption(self, tables: Tables) -> str:
        return (
            f"P(trait) at the end. Bars: mean over base seeds; whiskers: {level(tables.summary)}; points: bases; "
            "dashed: chance. On the right, p-values of the paired t test (of logarithms of gains where all P start "
            f"below {comparisons.RARE:g}), Holm-adjusted over traits (for all traits together: as is). "
            f"{partly(tables.runs, MOST_BARS, 'bar')}{without(tables.summary)}{replication(tables.runs)}"
        )


def comparison(
    runs: pd.DataFrame,
    summary: pd.DataFrame,
    compared: pd.DataFrame,
    base_rate: Mapping[str, float],
    colours: Mapping[str, str],
) -> "Drawn | None":
    """Final P(trait) per trait and arm: the mean as a bar, its interval as whiskers, each base as a point.

    Where traits are rare (`comparisons.are_rare`) the axis is logarithmic; it begins left of all points.

    Args:
      runs: the runs of one cell.
      summary, compared: the rows of `comparisons.summarise` of that cell (`comparisons.in_cell`).
    """
    summary = summary[summary["mean"].notna()]
    if summary.empty:
        return None
    traits = list(summary.loc[summary["trait"] != comparisons.POOLED, "trait"].unique())
    groups = [comparisons.POOLED, *traits[:MOST_BARS]] if len(traits) > 1 else traits
    arms = style.present(colours, summary["arm"])
    height = 0.17 * len(groups) * (len(arms) + 0.9) + 1.2
    rare = comparisons.are_rare(summary, compared)
    lookup = comparisons.Lookup(compared)
    found = {
        name: {(line["trait"], line["arm"]): lookup.find(line, name, rare) for line in summary.to_dict("records")}
        for name in comparisons.compared(compared)
    }
    tests = {name: tests for name, tests in found.items() if any(np.isfinite(test.p) for test in tests.values())}
    figure = style.blank(7.2 + 0.95 * len(tests), height)
    if tests:
        axis, margin = figure.subplots(1, 2, sharey=True, width_ratios=[7.2, 0.95 * len(tests)])
    else:
        axis = figure.add_subplot()
    style.clean(axis, grid="x")
    bases = {arm: by_base(runs[runs["arm"] == arm]) for arm in arms}
    of_all = complete(runs)
    left = 0.0
    if rare:
        axis.set_xscale("log")
        ends = np.concatenate([table.to_numpy().ravel() for table in bases.values()])
        left = 0.7 * min(value for value in (*ends, *base_rate.values()) if value > 0)
    pitch = len(arms) + 0.9
    for g, group in enumerate(groups):
        pooled = group == comparisons.POOLED
        for a, arm in enumerate(arms):
            rows = summary[(summary["trait"] == group) & (summary["arm"] == arm)]
            if rows.empty:
                continue
            row, y = rows.iloc[0], g * pitch + a
            axis.barh(
                y,
                row["mean"] - left,
                left=left,
                height=0.82,
                color=colours[arm],
                alpha=0.45 if pooled else 0.3,
                zorder=2,
            )
            axis.plot([row["mean"]] * 2, [y - 0.41, y + 0.41], color=colours[arm], linewidth=2, zorder=3)
            if np.isfinite(row["ci_low"]):
                low = max(row["ci_low"], left) if left else row["ci_low"]
                axis.plot([low, row["ci_high"]], [y, y], color=style.CHANCE, linewidth=1.1, zorder=5)
            if pooled:
                of_arm = of_all if row.get("left_out", 0) else runs
                points = by_base(of_arm[of_arm["arm"] == arm]).mean(axis=0)
            else:
                points = bases[arm].loc[group]
            points = points.dropna().to_numpy()
            offsets = np.linspace(-0.24, 0.24, len(points)) if len(points) > 1 else np.zeros(len(points))
            axis.scatter(points, y + offsets, s=11, color=colours[arm], edgecolor="white", linewidth=0.4, zorder=6)
        chances = [base_rate[trait] for trait in (traits if pooled else [group]) if trait in base_rate]
        if chances:
            ends = [g * pitch - 0.6, g * pitch + len(arms) - 0.4]
            axis.plot([np.mean(chances)] * 2, ends, color=style.CHANCE, linewidth=1, linestyle=(0, (3, 2)), zorder=4)
    centre = (len(arms) - 1) / 2
    axis.set_yticks([g * pitch + centre for g in range(len(groups))])
    gone = comparisons.left_out(summary)
    pooled_label = f"all {len(traits)} traits" + (f"\nbut {gone} pair{'s'[: gone != 1]}" if gone else "")
    axis.set_yticklabels([pooled_label if group == comparisons.POOLED else group for group in groups])
    if groups[0] == comparisons.POOLED:
        axis.get_yticklabels()[0].set_fontweight("bold")
        axis.axhline(pitch - 0.95, color="#999999", linewidth=0.8)
    axis.set_ylim(len(groups) * pitch - 0.3, -1.0)
    axis.set_xlim(left, min(axis.get_xlim()[1], 1.02))
    axis.set_xlabel("P(trait) at the end of student training", fontsize=9.5)
    if tests:
        _write_p_values(
            margin,
            tests,
            {(group, arm): g * pitch + a for g, group in enumerate(groups) for a, arm in enumerate(arms)},
        )
    style.legend(figure, arms, colours, chance=bool(base_rate))
    return figure


def _write_p_values(
    margin: "Axes",
    tests: Mapping[str, Mapping[tuple[str, str], comparisons.Comparison]],
    heights: Mapping[tuple[str, str], float],
) -> None:
    """p-values beside the bars: a column per comparison, at the height of the arm that is compared."""
    margin.set_axis_off()
    margin.set_xlim(0, len(tests))
    for column, (reference, of_bars) in enumerate(tests.items()):
        head = f"p vs\n{compared_label(reference)}"
        margin.text(column, 1.0, head, transform=margin.get_xaxis_transform(), fontsize=8, va="bottom")
        for bar, test in of_bars.items():
            if np.isfinite(test.p) and bar in heights:
                margin.text(column, heights[bar], p_value(test.adjusted), fontsize=8, va="center")
