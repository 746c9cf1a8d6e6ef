"""P(trait) at the end against each swept field."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from subl_jax.results import cells
from subl_jax.results.figures import style
from subl_jax.results.figures.base import Figure, Tables
from subl_jax.results.units import by_base
from subl_jax.statistics.intervals import interval

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure as Drawn

_MOST_WORDS = 10  # values of a field that is no number


class Dose(Figure):
    name = "dose"
    scope = "sweep"
    place = 10

    def draw(self, tables: Tables) -> "Drawn | None":
        return dose_response(tables.runs, tables.base_rate, tables.colours, tables.confidence)

    def caption(self, tables: Tables) -> str:
        return (
            "P(trait) at the end against each swept field, averaged over traits and the other swept fields within a "
            f"base. Points: single bases; whiskers and shaded bands: {tables.confidence:.0%} t intervals over base "
            "seeds. An arm without the field is a horizontal line."
        )


def dose_response(
    runs: pd.DataFrame, base_rate: Mapping[str, float], colours: Mapping[str, str], confidence: float = 0.95
) -> "Drawn | None":
    """Final P(trait) against each swept field, by arm; an arm that lacks the field is a line across.

    Words, and lists such as widths, stand evenly apart in the order of the runs.
    """
    ok = runs[(runs["status"] == "ok") & runs["trait"].notna()]
    swept = cells.swept_columns(runs)
    panels = [
        (world, field, along)
        for world, rows in ok.groupby("world")
        for field, along in _axes(rows, swept)
        if 1 < rows[field].nunique() <= (np.inf if _is_number(rows[field]) else _MOST_WORDS)
    ]
    if not panels:
        return None
    figure, axes = style.panels(len(panels), height=2.9, most_across=3)
    for axis, (world, field, along) in zip(axes, panels, strict=True):
        rows = ok[ok["world"] == world]
        words = [] if _is_number(rows[field]) else list(rows[field].dropna().astype(str).unique())
        if words:
            places = rows[field].map(lambda value, words=words: words.index(str(value)), na_action="ignore")
            rows = rows.assign(**{field: places.astype(float)})
            axis.set_xticks(range(len(words)), words, fontsize=7.5, rotation=20)
        levels = np.sort(rows[field].dropna().astype(float).unique())
        logarithmic = not words and levels[0] > 0 and levels[-1] / levels[0] > 10
        if logarithmic:
            axis.set_xscale("log")
        for a, (arm, colour) in enumerate(colours.items()):
            of_arm = rows[rows["arm"] == arm]
            if of_arm.empty:
                continue
            if of_arm[field].isna().all():
                mean, low, high = interval(by_base(of_arm).mean(axis=0), confidence)
                axis.axhline(mean, color=colour, linewidth=1.6, zorder=3)
                if np.isfinite(low):
                    axis.axhspan(low, high, color=colour, alpha=0.12, linewidth=0, zorder=1)
                continue
            shift = (a - (len(colours) - 1) / 2) * 0.012
            # Points of two checkpoints are not one curve.
            models = [name for name in swept if name.startswith("world.") and name not in (field, *along)]
            for _, rows_of_model in of_arm.groupby(models, dropna=False) if models else [((), of_arm)]:
                _draw_dose(axis, rows_of_model, field, levels, shift, logarithmic, colour, confidence, not words)
        chances = [base_rate[trait] for trait in rows["trait"].unique() if trait in base_rate]
        if chances:
            axis.axhline(np.mean(chances), color=style.CHANCE, linewidth=1, linestyle=(0, (4, 3)), zorder=2)
        axis.set_ylim(bottom=min(0.0, axis.get_ylim()[0]) if rows["target_end"].min() < 0 else 0.0)
        label = "\nwith ".join([field, *along])
        axis.set_xlabel(label if ok["world"].nunique() == 1 else f"{label} ({world})", fontsize=9)
        axis.tick_params(labelbottom=True)
    figure.supylabel("P(trait) at the end", fontsize=9.5)
    style.legend(figure, style.present(colours, ok["arm"]), colours, chance=bool(base_rate))
    return figure


def _axes(rows: pd.DataFrame, fields: Sequence[str]) -> list[tuple[str, list[str]]]:
    """The fields, each with those whose values go with its own one to one, such as a rank with its alpha."""
    found: list[tuple[str, list[str]]] = []
    for field in fields:
        for first, along in found:
            pairs = rows[[first, field]].astype(str).drop_duplicates()
            if len(pairs) == pairs[first].nunique() == pairs[field].nunique():
                along.append(field)
                break
        else:
            found.append((field, []))
    return found


def _draw_dose(
    axis: "Axes",
    rows: pd.DataFrame,
    field: str,
    levels: np.ndarray,
    shift: float,
    logarithmic: bool,
    colour: str,
    confidence: float,
    joined: bool,
) -> None:
    """One arm in one panel: a point per base at each level, and the mean over bases with its interval."""
    means = []
    for level, at_level in rows.groupby(rows[field].astype(float)):
        bases = by_base(at_level).mean(axis=0).dropna()
        span = levels[-1] / levels[0] if logarithmic else levels[-1] - levels[0]
        x = level * span**shift if logarithmic else level + span * shift
        axis.scatter(np.full(len(bases), x), bases, s=9, color=colour, alpha=0.5, linewidth=0, zorder=3)
        means.append((x, *interval(bases, confidence)))
    x, mean, low, high = np.array(means).T
    if joined:
        axis.plot(x, mean, "-", color=colour, linewidth=1.8, zorder=4)
    axis.vlines(x, low, high, color=colour, linewidth=1.6, zorder=4)
    axis.scatter(x, mean, s=24, color=colour, edgecolor="white", linewidth=0.7, zorder=5)


def _is_number(column: pd.Series) -> bool:
    return pd.api.types.is_numeric_dtype(column) and not pd.api.types.is_bool_dtype(column)
