"""What the output filter kept of what teachers wrote, and why the rest was dropped."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from subl_jax.results.figures import style
from subl_jax.results.figures.base import Figure, Tables

if TYPE_CHECKING:
    from matplotlib.figure import Figure as Drawn

_MOST_ROWS = 30


class Retention(Figure):
    name = "filter"
    scope = "sweep"
    place = 20

    def draw(self, tables: Tables) -> "Drawn | None":
        return retention(tables.datasets)

    def caption(self, tables: Tables) -> str:
        return (
            "The output filter. Left: the fraction of each dataset's samples that were kept. Right: what became of all "
            "samples of a trait's teachers, by the reason of rejection. Arms whose data was filtered very differently "
            "are not comparable."
        )


def retention(datasets: pd.DataFrame) -> "Drawn | None":
    """Left: the share of samples each teacher's filter kept. Right: what became of all samples, by reason."""
    from matplotlib.patches import Patch

    if "drawn" not in datasets.columns:
        return None
    datasets = datasets[datasets["drawn"].fillna(0) > 0]
    if datasets.empty:
        return None
    names = datasets["trait"].where(datasets["trait"].notna(), "no trait (control)")
    order = list(names.sort_values(key=lambda name: name == "no trait (control)", kind="stable").unique())
    shown = order if len(order) <= _MOST_ROWS else [*order[: _MOST_ROWS - 1], order[-1]]
    figure = style.blank(10.5, 0.27 * len(shown) + 1.5)
    left, right = figure.subplots(1, 2, sharey=True, width_ratios=[1, 1.25])
    reasons = [name for name in datasets.columns if name.startswith("why/") and datasets[name].fillna(0).sum() > 0]
    reasons = sorted(reasons, key=lambda name: -datasets[name].sum())
    for axis in (left, right):
        style.clean(axis, grid="x")
    parts = ["kept", *reasons]
    # Samples drawn that were neither kept nor rejected: a surplus over the size asked for.
    surplus = (datasets["drawn"] - datasets[parts].sum(axis=1)).clip(lower=0)
    datasets = datasets.assign(surplus=surplus)
    parts += ["surplus"] if surplus.sum() > 0 else []
    part_colours = _stack_colours(parts)
    for y, name in enumerate(shown):
        rows = datasets[names == name]
        kept = rows["kept_fraction"].to_numpy(float)
        offsets = np.linspace(-0.2, 0.2, len(kept)) if len(kept) > 1 else np.zeros(len(kept))
        left.scatter(kept, y + offsets, s=16, color=style.ARM_COLOURS["same_init"], alpha=0.75, linewidth=0, zorder=3)
        shares = rows[parts].sum() / rows["drawn"].sum()
        edges = shares.cumsum() - shares
        look = {"color": part_colours, "edgecolor": "white", "linewidth": 0.5, "zorder": 2}
        right.barh(y, shares, left=edges, height=0.7, **look)
    left.set_yticks(range(len(shown)), shown, fontsize=8.5)
    left.set_ylim(len(shown) - 0.4, -0.6)
    left.set_xlim(-0.02, 1.02)
    right.set_xlim(0, 1)
    left.set_xlabel("kept fraction, one point per dataset", fontsize=9)
    right.set_xlabel("share of all samples drawn", fontsize=9)
    handles = [
        Patch(color=colour, label=part.removeprefix("why/")) for part, colour in zip(parts, part_colours, strict=True)
    ]
    figure.legend(handles=handles, loc="outside upper center", ncols=min(6, len(parts)), frameon=False, fontsize=8.5)
    return figure


def _stack_colours(parts: Sequence[str]) -> list[str]:
    cycle = ("#E69F00", "#D55E00", "#CC79A7", "#56B4E9", "#F0E442", "#8C6D1F", "#009E73", "#000000")
    fixed = {"kept": style.ARM_COLOURS["same_init"], "surplus": "#CCCCCC"}
    return [fixed.get(part, cycle[(i - 1) % len(cycle)]) for i, part in enumerate(parts)]
