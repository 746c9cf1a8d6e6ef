"""How much of a trait passes from the part that a teacher trains to the part that a student trains."""

from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from subl_jax.results import layers
from subl_jax.results.figures import style
from subl_jax.results.figures.base import Figure, Tables
from subl_jax.results.formats import number

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure as Drawn

_MOST = 24  # parts along an axis


class LayerMap(Figure):
    name = "layers"
    scope = "sweep"
    place = 5

    def draw(self, tables: Tables) -> "Drawn | None":
        return layer_map(tables.runs, tables.base_rate, tables.colours, tables.confidence, tables.datasets)

    def caption(self, tables: Tables) -> str:
        return (
            "P(trait) at the end by what teacher and student train, or by what of the teacher's start a student "
            f"shares: mean over bases with its {tables.confidence:.0%} t interval. The column at the right of a map is "
            "the control: students that train this part on numbers without a trait. Below a teacher's part stands the "
            "P(trait) that teachers of it have reached; where that is low, the trait could not be instilled there."
        )


def layer_map(
    runs: pd.DataFrame,
    base_rate: Mapping[str, float],
    colours: Mapping[str, str],
    confidence: float = 0.95,
    datasets: pd.DataFrame | None = None,
) -> "Drawn | None":
    """A map where teacher's and student's parts are crossed, else a point for each part and arm."""
    found = layers.table(runs, confidence)
    same = found[found["arm"] == "same_init"]
    students = layers.parts(found["student"])
    if not 1 < len(students) <= _MOST:
        return None
    teachers = layers.parts(same["teacher"])
    if len(teachers) > 1 and (same.groupby("teacher")["student"].nunique() > 1).any():
        return _crossed(found, teachers, students, {} if datasets is None else layers.teachers(runs, datasets))
    return _points(found, students, base_rate, colours)


def _crossed(found: pd.DataFrame, teachers: list[str], students: list[str], reached: Mapping[str, float]) -> "Drawn":
    same, control = (found[found["arm"] == arm] for arm in ("same_init", "control"))
    columns = [*teachers, "control"] if len(control) else teachers
    values = np.full((len(students), len(columns), 3), np.nan)
    for row in pd.concat([same, control]).itertuples():
        column = len(teachers) if row.arm == "control" else teachers.index(row.teacher)
        values[students.index(row.student), column] = row.mean, row.low, row.high
    figure = style.blank(0.95 * len(columns) + 2.6, 0.62 * len(students) + 1.6)
    axis: Axes = figure.subplots()
    most = np.nanmax(values[..., 0]) if np.isfinite(values[..., 0]).any() else 1.0
    image = axis.imshow(values[..., 0], cmap="viridis", vmin=0, vmax=most, aspect="auto", origin="lower")
    named = [f"{name}\nhas {number(reached[name])}" if name in reached else name for name in columns]
    axis.set_xticks(range(len(columns)), named, fontsize=8)
    axis.set_yticks(range(len(students)), students, fontsize=8.5)
    axis.set_xlabel("the teacher trains", fontsize=9.5)
    axis.set_ylabel("the student trains", fontsize=9.5)
    for (i, j), mean in np.ndenumerate(values[..., 0]):
        if np.isfinite(mean):
            low, high = values[i, j, 1:]
            span = f"\n[{number(low)}, {number(high)}]" if np.isfinite(low) else ""
            colour = "white" if mean < 0.6 * most else "black"
            axis.text(j, i, number(mean) + span, ha="center", va="center", fontsize=6.5, color=colour)
    if len(control):
        axis.axvline(len(teachers) - 0.5, color="white", linewidth=3)
    figure.colorbar(image, ax=axis, shrink=0.85, pad=0.02).set_label("P(trait) at the end", fontsize=9)
    return figure


def _points(
    found: pd.DataFrame, students: list[str], base_rate: Mapping[str, float], colours: Mapping[str, str]
) -> "Drawn":
    figure = style.blank(max(5.5, 0.42 * len(students) + 1.5), 3.8)
    axis: Axes = figure.subplots()
    style.clean(axis, grid="y")
    arms = style.present(colours, found["arm"])
    for a, arm in enumerate(arms):
        rows = found[found["arm"] == arm].groupby("student")[["mean", "low", "high"]].mean()
        rows = rows.reindex(students).to_numpy()
        x = np.arange(len(students)) + 0.14 * (a - (len(arms) - 1) / 2)
        axis.vlines(x, rows[:, 1], rows[:, 2], color=colours[arm], linewidth=1.6)
        axis.scatter(x, rows[:, 0], s=22, color=colours[arm], edgecolor="white", linewidth=0.6, zorder=3)
    if base_rate:
        chance = np.mean(list(base_rate.values()))
        axis.axhline(chance, color=style.CHANCE, linewidth=1, linestyle=(0, (4, 3)))
    axis.set_xticks(range(len(students)), students, fontsize=8, rotation=40, ha="right", rotation_mode="anchor")
    axis.set_ylabel("P(trait) at the end", fontsize=9.5)
    axis.set_ylim(bottom=0)
    style.legend(figure, arms, colours, chance=bool(base_rate))
    return figure
