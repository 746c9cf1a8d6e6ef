"""The change of every trait in students of every teacher, not only of the one instilled."""

import functools
import math
from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from subl_jax.results import cells, comparisons
from subl_jax.results.figures import style
from subl_jax.results.figures.base import Figure, Tables, replication
from subl_jax.results.figures.lines import ok_runs
from subl_jax.results.formats import arm_label, factor
from subl_jax.results.units import of_runs

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure as Drawn

_MOST_LABELS = 40  # names along an axis
_MOST_WRITTEN = 14  # more columns are too narrow for numbers
_MOST_CELL_VALUES = 170  # cells that have their value written in


class TraitMatrix(Figure):
    name = "traits"
    place = 30

    def draw(self, tables: Tables) -> "Drawn | None":
        return trait_matrix(tables.runs, tables.curves)

    def caption(self, tables: Tables) -> str:
        return (
            "How much every trait changes over training, not only the teacher's own, which is outlined: P at the end "
            f"minus P at the start, mean over base seeds; or, where all start below {comparisons.RARE:g}, the factor "
            "between them, geometric mean. Transfer that is specific lights up the outlined cells of same init and "
            f"nothing else. Where there is room, changes are written in the cells. {replication(tables.runs)}"
        )


def trait_matrix(runs: pd.DataFrame, curves: pd.DataFrame) -> "Drawn | None":
    """Change of P over training: the teacher's trait (rows) against every evaluated trait (columns), for each arm.

    Where traits are rare, as single words in a language model are, it is the factor: rare words and common ones then
    compare.
    """
    changes, factors = _changes(runs, curves)
    if changes.empty:
        return None
    arms = cells.ordered_arms(changes)
    rows = list(runs["trait"].dropna().unique())
    evaluated = list(changes["evaluated"].unique())
    columns = [name for name in rows if name in evaluated] + [name for name in evaluated if name not in rows]
    tables = {
        arm: table.groupby(["trait", "evaluated", "unit"])["change"]
        .mean()
        .groupby(["trait", "evaluated"])
        .mean()
        .unstack("evaluated")
        .reindex(index=rows, columns=columns)
        for arm, table in changes.groupby("arm")
    }
    reach = max(float(np.nanmax(np.abs(table.to_numpy()))) for table in tables.values()) or 1e-6
    across = 2 if len(arms) == 4 else min(3, len(arms))
    down = -(-len(arms) // across)
    side = float(np.clip(0.3 * len(columns) + 1.1, 3.2, 4.0))
    tall = float(np.clip(side * len(rows) / len(columns), 1.0, 4.0))
    figure = style.blank(side * across + 0.9, down * (tall + 1.3) + 0.3)
    axes = np.atleast_1d(figure.subplots(down, across, sharex=True, sharey=True, squeeze=False)).ravel()
    unit, unit_name = _unit(reach)
    text = _factor if factors else functools.partial(_difference, unit=unit)
    written = len(columns) <= _MOST_WRITTEN and len(rows) * len(columns) <= _MOST_CELL_VALUES
    for axis, arm in zip(axes, arms, strict=False):
        values = tables[arm].to_numpy(float)
        image = axis.imshow(values, cmap="RdBu_r", vmin=-reach, vmax=reach, aspect="auto", interpolation="nearest")
        axis.set_title(arm_label(arm), fontsize=10, fontweight="bold")
        _name_ticks(axis.xaxis, columns, rotation=90)
        _name_ticks(axis.yaxis, rows, rotation=0)
        if written:
            _write_values(axis, values, reach, text)
        if len(columns) <= _MOST_LABELS:
            _outline(axis, [(i, columns.index(name)) for i, name in enumerate(rows) if name in columns])
    for axis in axes[len(arms) :]:
        axis.set_visible(False)
    figure.supxlabel("evaluated trait", fontsize=9.5)
    figure.supylabel("teacher's trait", fontsize=9.5)
    bar = figure.colorbar(image, ax=list(axes), shrink=0.8, pad=0.01, aspect=30)
    if factors:
        bar.set_label("P at the end / P at the start", fontsize=9)
        bar.ax.yaxis.set_major_formatter(lambda value, place: _factor(value))
    else:
        in_cells = f" (in the cells: {unit_name})" if written else ""
        bar.set_label(f"P at the end − P at the start{in_cells}", fontsize=9)
    bar.ax.tick_params(labelsize=8)
    return figure


def _changes(runs: pd.DataFrame, curves: pd.DataFrame) -> tuple[pd.DataFrame, bool]:
    """Of every trait metric of every ok run: arm, trait, unit, evaluated, change; and whether the changes are factors.

    A change is the last minus the first value, or log2 of their ratio.
    """
    metrics = [name for name in curves["metric"].unique() if name.startswith("trait/")]
    values = curves[curves["metric"].isin(metrics)].sort_values("step", kind="stable")
    ends = values.groupby(["run_id", "metric"], sort=False, observed=True)["value"].agg(["first", "last"]).reset_index()
    evaluated = ends["metric"].astype("category").cat.remove_unused_categories()
    evaluated = evaluated.cat.rename_categories(lambda name: name.removeprefix("trait/"))
    changes = of_runs(ends.assign(evaluated=evaluated), ok_runs(runs)).dropna(subset=["first", "last"])
    probabilities = changes[["first", "last"]]
    factors = comparisons.rare(probabilities["first"], probabilities.stack())
    change = np.log2(changes["last"] / changes["first"]) if factors else changes["last"] - changes["first"]
    return changes.assign(change=change), factors


def _factor(change: float) -> str:
    """2 to the power of a change."""
    return factor(2.0**change)


def _name_ticks(axis: Any, names: Sequence[str], rotation: int) -> None:
    if len(names) > _MOST_LABELS:
        axis.set_ticks([])
        return
    axis.set_ticks(range(len(names)), names, rotation=rotation, fontsize=8)


def _unit(reach: float) -> tuple[float, str]:
    """What the largest of some changes is written in, and its name: percentage points, or a power of ten below them."""
    if reach >= 0.005:
        return 0.01, "percentage points"
    exponent = math.floor(math.log10(reach))
    return 10.0**exponent, f"1e{exponent}"


def _difference(change: float, unit: float) -> str:
    """In a unit, with one decimal: "+2.3", "−0.1"; "0" for what rounds to it."""
    return f"{change / unit:+.1f}".replace("-", "−") if abs(change / unit) >= 0.05 else "0"


def _write_values(axis: "Axes", values: np.ndarray, reach: float, text: Callable[[float], str]) -> None:
    """The values in the cells, as `text` writes them."""
    size = 7.5 if values.shape[1] <= 6 else 6.5 if values.shape[1] <= 9 else 5.5
    for (i, j), value in np.ndenumerate(values):
        if np.isfinite(value):
            colour = "white" if abs(value) > 0.6 * reach else "#333333"
            axis.text(j, i, text(value), ha="center", va="center", fontsize=size, color=colour)


def _outline(axis: "Axes", cells: Iterable[tuple[int, int]]) -> None:
    from matplotlib.patches import Rectangle

    for i, j in cells:
        axis.add_patch(Rectangle((j - 0.5, i - 0.5), 1, 1, fill=False, edgecolor=style.CHANCE, linewidth=1.1))
