"""What all figures share: colours of arms, panels, axes, the legend."""

import importlib
import io
import os
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING

import pandas as pd

from subl_jax.results import cells
from subl_jax.results.formats import arm_label

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.lines import Line2D

# Okabe and Ito's colours, and greys of controls: told apart under every common colour blindness.
ARM_COLOURS = {"same_init": "#0072B2", "cross_init": "#E69F00", "control": "#666666", "cross_control": "#AFAFAF"}
_OTHER_COLOURS = ("#009E73", "#CC79A7", "#D55E00", "#56B4E9", "#8C6D1F", "#7F3C8D", "#80BA5A", "#E73F74", "#1B4965")
_GRID = "#E3E3E3"
CHANCE = "#222222"
# Inches: an entry of a legend at least, and what it takes beside and for each character of its label.
_LEGEND_ENTRY, _LEGEND_MARK, _LEGEND_CHARACTER = 1.45, 0.55, 0.078


def arm_colours(runs: pd.DataFrame) -> dict[str, str]:
    """Arm → colour: fixed for the core arms, cycled for the others."""
    arms = cells.ordered_arms(runs)
    others = [arm for arm in arms if arm not in ARM_COLOURS]
    return {arm: ARM_COLOURS[arm] for arm in arms if arm in ARM_COLOURS} | {
        arm: _OTHER_COLOURS[i % len(_OTHER_COLOURS)] for i, arm in enumerate(others)
    }


def present(names: Iterable[str], column: pd.Series) -> list[str]:
    """Those of `names` that occur in the column."""
    there = set(column.unique())
    return [name for name in names if name in there]


def import_matplotlib() -> None:
    """Figures are files and need no backend: one that the environment names, and that is not here, must not matter."""
    named = os.environ.pop("MPLBACKEND", None)  # read once, as matplotlib is imported
    try:
        importlib.import_module("matplotlib")
    finally:
        if named is not None:
            os.environ["MPLBACKEND"] = named


def blank(width: float, height: float) -> "Figure":
    import_matplotlib()
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), dpi=110, layout="constrained", facecolor="white")


def png(figure: "Figure") -> bytes:
    stream = io.BytesIO()
    figure.savefig(stream, format="png")
    return stream.getvalue()


def panels(count: int, height: float, most_across: int = 4) -> "tuple[Figure, list[Axes]]":
    """A figure with `count` panels in rows of about equal length."""
    down = -(-count // most_across)
    across = -(-count // down)
    figure = blank(max(2.75 * across, 5.4) + 0.5, height * down + 0.6)
    grid = figure.subplots(down, across, squeeze=False).ravel()
    for axis in grid[count:]:
        axis.set_visible(False)
    for axis in grid[:count]:
        clean(axis, grid="y")
    return figure, list(grid[:count])


def clean(axis: "Axes", grid: str) -> None:
    axis.spines[["top", "right"]].set_visible(False)
    axis.spines[["left", "bottom"]].set_color("#999999")
    axis.grid(axis=grid, color=_GRID, linewidth=0.7)
    axis.set_axisbelow(True)
    axis.tick_params(labelsize=8.5, color="#999999")


def legend(figure: "Figure", arms: Sequence[str], colours: Mapping[str, str], chance: bool) -> None:
    from matplotlib.lines import Line2D

    handles = [Line2D([], [], color=colours[arm], linewidth=2.5, label=arm_label(arm)) for arm in arms]
    if chance:
        handles.append(Line2D([], [], color=CHANCE, linewidth=1, linestyle=(0, (4, 3)), label="chance"))
    legend_above(figure, handles)


def legend_above(figure: "Figure", handles: Sequence["Line2D"], fontsize: float = 9) -> None:
    """A legend over the panels, with as many entries beside one another as there is room for, and at most six."""
    longest = max(len(str(handle.get_label())) for handle in handles)
    entry = max(_LEGEND_ENTRY, _LEGEND_MARK + _LEGEND_CHARACTER * longest)
    across = min(6, len(handles), max(1, int(figure.get_figwidth() / entry)))
    figure.legend(handles=handles, loc="outside upper center", ncols=across, frameon=False, fontsize=fontsize)
