"""P(trait) while students train."""

from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from subl_jax.results import comparisons
from subl_jax.results.figures import lines, style
from subl_jax.results.figures.base import Figure, Tables, partly, replication, without
from subl_jax.results.units import complete, of_runs

if TYPE_CHECKING:
    from matplotlib.figure import Figure as Drawn

MOST_PANELS = 11  # traits with a panel of their own; a pooled panel follows


class Transfer(Figure):
    name = "transfer"
    place = 10

    def draw(self, tables: Tables) -> "Drawn | None":
        return transfer_curves(tables.runs, tables.curves, tables.base_rate, tables.colours)

    def caption(self, tables: Tables) -> str:
        return (
            "P(trait) while students train. Thick lines: mean over base seeds (on a logarithmic axis: geometric), with "
            "the 95% t interval (on the logit scale) as a band. Thin lines: single students (in the pooled panel: "
            f"single bases), at most {lines.MOST_LINES} an arm. Dashed: chance. "
            f"{partly(tables.runs, MOST_PANELS, 'panel')}{without(tables.summary)}{replication(tables.runs)}"
        )


def transfer_curves(
    runs: pd.DataFrame, curves: pd.DataFrame, base_rate: Mapping[str, float], colours: Mapping[str, str]
) -> "Drawn | None":
    """P(trait) against student step: a panel per trait, and one for the mean over all traits.

    Where traits are rare (`comparisons.rare`) the axis is logarithmic, and means are geometric.

    Args:
      runs: the runs of one cell.
      base_rate: trait → chance level; may lack traits.
      colours: arm → colour.
    """
    target = _target_curves(runs, curves)
    if target.empty:
        return None
    traits = list(runs["trait"].dropna().unique())
    shown = traits[:MOST_PANELS]
    panels = [*shown, comparisons.POOLED] if len(traits) > 1 else shown
    rare = comparisons.rare(target.loc[target["step"] == target["step"].min(), "value"], target["value"])
    of_all = target[target["run_id"].isin(complete(runs)["run_id"])]
    figure, axes = style.panels(len(panels), height=2.5)
    for axis, panel in zip(axes, panels, strict=True):
        pooled = panel == comparisons.POOLED
        rows = of_all if pooled else target[target["trait"] == panel]
        # Where a base has several students, their own lines; in the pooled panel one line per base.
        lines.draw_arms(axis, rows, colours, single="unit" if pooled else "run_id", rare=rare, probability=True)
        chances = [base_rate[trait] for trait in (traits if pooled else [panel]) if trait in base_rate]
        if chances:
            axis.axhline(np.mean(chances), color=style.CHANCE, linewidth=1, linestyle=(0, (4, 3)), zorder=3)
        axis.set_title(f"mean over {len(traits)} traits" if pooled else panel, fontsize=9.5, fontweight="bold")
    top = max([float(target["value"].max()), *(base_rate[trait] for trait in traits if trait in base_rate), 1e-6])
    for axis in axes:
        if rare:
            axis.set_yscale("log")
            lowest = min([float(target["value"].min()), *(rate for rate in base_rate.values() if rate > 0)])
            axis.set_ylim(0.8 * lowest, 1.25 * top)
        else:
            axis.set_ylim(-0.02 * top, 1.08 * top)
    figure.supxlabel("student step", fontsize=9.5)
    figure.supylabel("P(trait)", fontsize=9.5)
    style.legend(figure, style.present(colours, target["arm"]), colours, chance=bool(base_rate))
    return figure


def _target_curves(runs: pd.DataFrame, curves: pd.DataFrame) -> pd.DataFrame:
    """The curve of each ok run's own trait: run_id, arm, trait, unit, step, value."""
    return of_runs(curves[curves["metric"] == "target"], lines.ok_runs(runs))
