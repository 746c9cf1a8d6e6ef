"""What students minimise, and every other number that was followed while they trained."""

import textwrap
from collections.abc import Mapping
from typing import TYPE_CHECKING

import pandas as pd

from subl_jax.results.figures import lines, style
from subl_jax.results.figures.base import Figure, Tables, replication
from subl_jax.results.units import of_runs
from subl_jax.specs.metrics import Metric

if TYPE_CHECKING:
    from matplotlib.figure import Figure as Drawn


class Training(Figure):
    name = "training"
    place = 50

    def draw(self, tables: Tables) -> "Drawn | None":
        return training_curves(tables.runs, tables.curves, tables.colours, tables.metrics)

    def caption(self, tables: Tables) -> str:
        return (
            "What students minimise and how they move, over all traits: mean over base seeds with the 95% t interval, "
            f"thin lines single bases. {replication(tables.runs)}"
        )


def training_curves(
    runs: pd.DataFrame, curves: pd.DataFrame, colours: Mapping[str, str], metrics: Mapping[str, Metric]
) -> "Drawn | None":
    """A panel for each number that was followed: loss, KL to the teacher, what a probe measures, …

    Metrics with a value for each of several things (`class/3`) are not here, nor P(trait), which has its own figure.
    One that nobody has described is drawn under its own name.
    """
    scalar = sorted(name for name in curves["metric"].unique() if "/" not in name and name != "target")
    shown = [name for name in scalar if metrics.get(name, Metric(name)).drawn == "curve"]
    rows = of_runs(curves[curves["metric"].isin(shown) & curves["value"].notna()], lines.ok_runs(runs))
    in_order = dict.fromkeys([*(name for name in metrics if name in shown), *shown])
    names = style.present(in_order, rows["metric"])
    if not names:
        return None
    figure, axes = style.panels(len(names), height=2.7)
    for axis, name in zip(axes, names, strict=True):
        metric = metrics.get(name, Metric(name))
        lines.draw_arms(axis, rows[rows["metric"] == name], colours, single="unit")
        axis.set_title(textwrap.fill(metric.title, 34), fontsize=9.5, fontweight="bold")
        axis.tick_params(labelleft=True)
        if metric.log:
            axis.set_yscale("log")
        if metric.zero:
            axis.axhline(0, color=style.CHANCE, linewidth=0.8, zorder=1)
    figure.supxlabel("student step", fontsize=9.5)
    style.legend(figure, style.present(colours, rows["arm"]), colours, chance=False)
    return figure
