"""Metrics with a value for each of several things (classes, blurs), and those of which only the end counts."""

from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from subl_jax.results.figures import style
from subl_jax.results.figures.base import Figure, Tables, replication
from subl_jax.results.figures.lines import ok_runs
from subl_jax.results.units import of_runs
from subl_jax.specs.metrics import Metric
from subl_jax.statistics.intervals import t_intervals

if TYPE_CHECKING:
    from matplotlib.figure import Figure as Drawn


class Details(Figure):
    name = "details"
    place = 40

    def draw(self, tables: Tables) -> "Drawn | None":
        return details(tables.runs, tables.curves, tables.colours, tables.metrics)

    def caption(self, tables: Tables) -> str:
        return (
            "Other metrics that have a value for each of several things, at the end: mean over base seeds with the 95% "
            f"t interval. {replication(tables.runs)}"
        )


def details(
    runs: pd.DataFrame, curves: pd.DataFrame, colours: Mapping[str, str], metrics: Mapping[str, Metric]
) -> "Drawn | None":
    """The end values of metrics such as `class/3`, but for the traits': a panel per metric, an x place per name."""
    if curves.empty:
        return None
    shown = [name for name in curves["metric"].unique() if _is_shown(name, metrics)]
    rows = of_runs(curves[curves["metric"].isin(shown) & curves["value"].notna()], ok_runs(runs))
    if rows.empty:
        return None
    names = rows["metric"].astype(str).str.partition("/")
    rows = rows.assign(kind=names[0], place=names[2])
    last = rows[rows["step"] == rows.groupby("run_id", observed=True)["step"].transform("max")]
    kinds = list(last["kind"].unique())
    figure, axes = style.panels(len(kinds), height=2.9, most_across=2)
    for axis, kind in zip(axes, kinds, strict=True):
        of_kind = last[last["kind"] == kind]
        places = list(of_kind["place"].unique())
        for a, (arm, colour) in enumerate(colours.items()):
            of_arm = of_kind[of_kind["arm"] == arm]
            if of_arm.empty:
                continue
            bases = of_arm.groupby(["place", "unit"])["value"].mean().unstack("unit").reindex(places)
            mean, low, high = t_intervals(bases.to_numpy()).T
            x = np.arange(len(places)) + (a - (len(colours) - 1) / 2) * 0.08
            axis.plot(x, mean, "o-", color=colour, linewidth=1.4, markersize=3.5, zorder=4)
            axis.vlines(x, low, high, color=colour, linewidth=1.4, zorder=3)
        axis.set_xticks(np.arange(len(places)), places)
        axis.set_title(metrics.get(kind, Metric(kind)).title, fontsize=9.5, fontweight="bold")
        axis.tick_params(labelbottom=True, labelleft=True)
    style.legend(figure, style.present(colours, last["arm"]), colours, chance=False)
    return figure


def _is_shown(name: str, metrics: Mapping[str, Metric]) -> bool:
    """Whether a metric belongs here: not P(trait), nor what is drawn as a curve."""
    kind, several, _ = name.partition("/")
    if kind in ("trait", "rate"):
        return False
    drawn = metrics.get(kind, Metric(kind)).drawn
    return drawn == "end" or (drawn == "curve" and bool(several))
