"""The one-step theorem: what the students' moves are, beside what is predicted of them."""

from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from subl_jax.results.figures import style
from subl_jax.results.figures.base import Figure, Tables

if TYPE_CHECKING:
    from matplotlib.figure import Figure as Drawn


class Theorem(Figure):
    name = "theorem"
    scope = "sweep"
    section = "theorem"

    def draw(self, tables: Tables) -> "Drawn | None":
        return theorem(tables.steps, tables.colours)

    def caption(self, tables: Tables) -> str:
        return (
            "The one-step theorem: the product of the student's and the teacher's move against what is predicted of it "
            "to leading order, one point a student. On the line they are equal; below the horizontal line the student "
            "moved away. The prediction is for a student of the same start."
        )


def theorem(steps: pd.DataFrame, colours: Mapping[str, str]) -> "Drawn | None":
    """Δ_S · Δ_T against its predicted leading order, one point a student (`results.one_step.table`)."""
    if steps.empty:
        return None
    worlds = list(steps["setting"].unique())
    figure, axes = style.panels(len(worlds), height=3.2, most_across=3)
    for axis, world in zip(axes, worlds, strict=True):
        of_world = steps[steps["setting"] == world]
        for arm, colour in colours.items():
            rows = of_world[of_world["arm"] == arm]
            axis.scatter(rows["predicted"], rows["dot"], s=10, color=colour, alpha=0.6, linewidth=0, zorder=3)
        reach = of_world[["predicted", "dot"]].abs().replace(0, np.nan)
        least, most = float(reach.min().min()), float(reach.max().max())
        if np.isfinite(least) and most > 0:
            # Both may be negative for a student of another start.
            axis.set_xscale("symlog", linthresh=max(least, most * 1e-12))
            axis.set_yscale("symlog", linthresh=max(least, most * 1e-12))
            axis.xaxis.get_major_locator().set_params(numticks=6)
            axis.yaxis.get_major_locator().set_params(numticks=8)
            axis.plot([least, most], [least, most], color=style.CHANCE, linewidth=0.9, zorder=2)
        axis.axhline(0, color=style.CHANCE, linewidth=0.8, zorder=1)
        axis.set_title(world, fontsize=9, fontweight="bold")
        axis.tick_params(labelbottom=True, labelleft=True)
    figure.supxlabel("predicted: lr · Δ_T' G (θ_T − θ), from the same start lr · Δ_T' G Δ_T", fontsize=9.5)
    figure.supylabel("Δ_S · Δ_T", fontsize=9.5)
    style.legend(figure, style.present(colours, steps["arm"]), colours, chance=False)
    return figure
