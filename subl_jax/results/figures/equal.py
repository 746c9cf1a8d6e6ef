"""P(trait) where students are equally close to their teachers, and where they have moved equally far."""

from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from subl_jax.results import at_equal, layers
from subl_jax.results.figures import style
from subl_jax.results.figures.base import Figure, Tables
from subl_jax.results.formats import number

if TYPE_CHECKING:
    from matplotlib.figure import Figure as Drawn

_MOST = 32  # settings along an axis
# Curve → what it is called where students are equal in it, and whether it is read on a logarithmic axis.
_BY = {"kl_held_out": ("held-out KL to the teacher", True), "moved": ("norm of the update", False)}


class Equal(Figure):
    name = "equal"
    scope = "sweep"
    place = 6

    def draw(self, tables: Tables) -> "Drawn | None":
        return equal(tables.runs, tables.curves, tables.colours, tables.confidence)

    def caption(self, tables: Tables) -> str:
        return (
            "P(trait) read off each student's curve where it first comes to a level that nearly all settings of the "
            f"same initialisation reach: mean over bases with its {tables.confidence:.0%} t interval. Faint: fewer "
            "than nine tenths of the runs reach it."
        )


def settings(runs: pd.DataFrame) -> pd.Series:
    """What rule a run's student is trained by, and what its teacher and it train; without what is the same in all.

    A control goes by what its student trains.
    """

    def described(row: Mapping[str, object]) -> tuple[str, str, str]:
        count = row.get("world.layers")
        parts = [
            layers.trained(row, who, int(count)) if count == count and count else None for who in ("teacher", "student")
        ]
        rule, momentum = str(row.get("student.train.optimizer")), row.get("student.train.momentum")
        rule = "momentum" if rule == "sgd" and momentum else rule
        return rule, parts[0] or parts[1] or "", parts[1] or ""

    found = pd.DataFrame(
        [described(row) for row in runs.to_dict("records")], runs.index, ["rule", "teacher", "student"]
    )
    crossed = (found["teacher"] != found["student"]).any()
    part = found["teacher"] + " → " + found["student"] if crossed else found["student"]
    columns = [column for column in (found["rule"], part) if column.nunique() > 1]
    return columns[0] if len(columns) == 1 else (columns[0] + ", " + columns[1] if columns else part)


def equal(
    runs: pd.DataFrame, curves: pd.DataFrame, colours: Mapping[str, str], confidence: float = 0.95
) -> "Drawn | None":
    """A panel for each of `_BY` that was measured; a place for each setting."""
    measured = [name for name in _BY if name in set(curves["metric"].unique())]
    if not measured or "world.layers" not in runs:
        return None
    runs = runs.assign(setting=settings(runs))
    names = list(dict.fromkeys(runs["setting"]))
    if not 1 < len(names) <= _MOST or not (runs["arm"] == "same_init").any():
        return None
    figure = style.blank(max(6.0, 0.36 * len(names) + 1.6), 2.6 * len(measured) + 1.5)
    axes = np.atleast_1d(figure.subplots(len(measured), 1, sharex=True))
    arms = style.present(colours, runs["arm"])
    for axis, by in zip(axes, measured, strict=True):
        style.clean(axis, grid="y")
        title, log = _BY[by]
        found = at_equal.table(runs, curves, by, ["setting"], log=log, confidence=confidence)
        for a, arm in enumerate(arms):
            rows = found[found["arm"] == arm].set_index("setting").reindex(names)
            x = np.arange(len(names)) + 0.16 * (a - (len(arms) - 1) / 2)
            shown = np.where(rows["reached"] >= 0.9, 1.0, 0.3)
            axis.vlines(x, rows["low"], rows["high"], color=colours[arm], linewidth=1.5, alpha=shown)
            axis.scatter(x, rows["mean"], s=20, color=colours[arm], alpha=shown, linewidth=0, zorder=3)
        axis.set_title(f"at equal {title} ({number(found['level'].iloc[0])})", fontsize=9.5, fontweight="bold")
        axis.set_ylim(bottom=0)
    axes[-1].set_xticks(range(len(names)), names, fontsize=8, rotation=35, ha="right", rotation_mode="anchor")
    figure.supylabel("P(trait)", fontsize=9.5)
    style.legend(figure, arms, colours, chance=False)
    return figure
