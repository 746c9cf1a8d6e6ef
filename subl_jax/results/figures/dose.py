"""P(trait) at the end against each swept field."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from subl_jax.results import cells
from subl_jax.results.figures import style
from subl_jax.results.figures.base import Figure, Tables
from subl_jax.results.figures.places import Places, is_number
from subl_jax.results.units import by_base, complete
from subl_jax.statistics.intervals import interval

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure as Drawn

_SHIFT, _SHIFTED = 0.018, 0.07  # between arms at one place, and the most that one is shifted: less than the margin
_MOST_WORDS = 10  # values of a field that is no number
_MOST_LINES = 6  # values of the other field, a line each
_ACROSS = 3  # panels in a row
# Line and marker of each.
_LOOKS = (
    ("-", "o"),
    ((0, (5, 1.5)), "s"),
    ((0, (1, 1)), "^"),
    ((0, (5, 1, 1, 1)), "D"),
    ("-", "v"),
    ((0, (3, 1)), "<"),
)


class Dose(Figure):
    name = "dose"
    scope = "sweep"
    place = 10

    def draw(self, tables: Tables) -> "Drawn | None":
        return dose_response(tables.runs, tables.base_rate, tables.colours, tables.confidence)

    def caption(self, tables: Tables) -> str:
        swept = cells.swept_columns(tables.runs)
        of_two = any(panel.other for panel in _panels(_ok(tables.runs, swept), swept))
        others = (
            "averaged over traits within a base; a line for each value of the other field"
            if of_two
            else "averaged over traits and the other swept fields within a base"
        )
        return (
            f"P(trait) at the end against each swept field, {others}. Points: single bases; whiskers and shaded bands: "
            f"{tables.confidence:.0%} t intervals (on the logit scale) over base seeds. An arm without the field is a "
            "horizontal line. On a logarithmic axis, a zero stands left of the other values."
        )


@dataclasses.dataclass(frozen=True)
class _Panel:
    """A field of a world; `along` are fields whose values go with its own one to one, `other` has a line a value."""

    world: str
    field: str
    along: tuple[str, ...]
    other: str | None = None


def dose_response(
    runs: pd.DataFrame, base_rate: Mapping[str, float], colours: Mapping[str, str], confidence: float = 0.95
) -> "Drawn | None":
    """Final P(trait) against each swept field, by arm; an arm that lacks the field is a line across.

    Where two fields are swept, each has a line for every value of the other. Words, and lists such as widths, stand
    evenly apart in the order of the runs. All panels have one range of P(trait).
    """
    swept = cells.swept_columns(runs)
    ok = _ok(runs, swept)
    panels = _panels(ok, swept)
    if not panels:
        return None
    figure, axes = style.panels(len(panels), height=2.9, most_across=_ACROSS)
    width = 0.8 * figure.get_figwidth() / min(len(panels), _ACROSS)
    for axis, panel in zip(axes, panels, strict=True):
        rows = ok[ok["world"] == panel.world]
        places = Places.of(rows[panel.field])
        places.draw(axis, width)
        _draw_panel(axis, rows, panel, places, swept, colours, confidence)
        chances = [base_rate[trait] for trait in rows["trait"].unique() if trait in base_rate]
        if chances:
            axis.axhline(np.mean(chances), color=style.CHANCE, linewidth=1, linestyle=(0, (4, 3)), zorder=2)
        notes = ["log"] * places.logarithmic + [panel.world] * (ok["world"].nunique() > 1)
        label = "\nwith ".join([panel.field, *panel.along]) + (f" ({', '.join(notes)})" if notes else "")
        axis.set_xlabel(label, fontsize=9)
        axis.tick_params(labelbottom=True)
    bottom, top = min(axis.get_ylim()[0] for axis in axes), max(axis.get_ylim()[1] for axis in axes)
    values = ok["target_end"].dropna()
    if values.between(0, 1).all():  # else it is no probability, and the range is that of what is drawn
        bottom, top = 0.0, min(top, 1.02)
    for axis in axes:
        axis.set_ylim(bottom, top)
    figure.supylabel("P(trait) at the end", fontsize=9.5)
    style.legend(figure, style.present(colours, ok["arm"]), colours, chance=bool(base_rate))
    return figure


def _ok(runs: pd.DataFrame, swept: Sequence[str]) -> pd.DataFrame:
    """The runs that are averaged: every arm of a setting over the same traits and bases."""
    runs = runs[runs["trait"].notna()]
    if (runs["status"] != "ok").any():
        settings = cells.hashable(runs).groupby(["world", *swept], dropna=False, sort=False).ngroup()
        runs = pd.concat([complete(of_setting) for _, of_setting in runs.groupby(settings)]).sort_index()
    return runs[runs["status"] == "ok"]


def _panels(ok: pd.DataFrame, swept: Sequence[str]) -> list[_Panel]:
    found = []
    for world, rows in ok.groupby("world"):
        axes = [
            (field, along)
            for field, along in _axes(rows, swept)
            if 1 < rows[field].nunique() <= (np.inf if is_number(rows[field]) else _MOST_WORDS)
        ]
        others = {field: other for (field, _), (other, _) in zip(axes, reversed(axes), strict=True)}
        lines = {field: other for field, other in others.items() if rows[other].nunique() <= _MOST_LINES}
        two = len(axes) == 2
        found += [_Panel(world, field, tuple(along), lines.get(field) if two else None) for field, along in axes]
    return found


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


def _draw_panel(
    axis: "Axes",
    rows: pd.DataFrame,
    panel: _Panel,
    places: Places,
    swept: Sequence[str],
    colours: Mapping[str, str],
    confidence: float,
) -> None:
    field, other = panel.field, panel.other
    rows = rows.assign(**{field: places.found(rows[field])})
    of_lines = Places.of(rows[other]) if other else None
    for a, (arm, colour) in enumerate(colours.items()):
        of_arm = rows[rows["arm"] == arm]
        if of_arm.empty:
            continue
        if of_arm[field].isna().all():
            mean, low, high = interval(by_base(of_arm).mean(axis=0), confidence, probability=True)
            axis.axhline(mean, color=colour, linewidth=1.6, zorder=3)
            if np.isfinite(low):
                axis.axhspan(low, high, color=colour, alpha=0.12, linewidth=0, zorder=1)
            continue
        shift = (a - (len(colours) - 1) / 2) * min(_SHIFT, 2 * _SHIFTED / len(colours))
        # Points of two checkpoints are not one curve.
        models = [name for name in swept if name.startswith("world.") and name not in (field, *panel.along, other)]
        for _, of_model in of_arm.groupby(models, dropna=False) if models else [((), of_arm)]:
            lines = _lines(of_model, other, of_lines)
            for i, of_line in lines:
                own = shift + 0.007 * (i - (len(of_lines.values) - 1) / 2) if of_lines else shift
                _draw_dose(axis, of_line, field, own, colour, _LOOKS[i], confidence, places.ordered)
    if other:
        _legend(axis, of_lines, other)


def _lines(rows: pd.DataFrame, other: str | None, values: Places | None) -> list[tuple[int, pd.DataFrame]]:
    """The rows of each value of the other field, by its place among them; all in one where the arm lacks it."""
    if values is None or rows[other].isna().all():
        return [(0, rows)]
    places = values.found(rows[other])
    return [(i, rows[places == at]) for i, at in enumerate(values.at) if (places == at).any()]


def _draw_dose(
    axis: "Axes",
    rows: pd.DataFrame,
    field: str,
    shift: float,
    colour: str,
    look: tuple[object, str],
    confidence: float,
    joined: bool,
) -> None:
    """One line in one panel: a point per base at each level, and the mean over bases with its interval."""
    means = []
    for level, at_level in rows.groupby(field):
        bases = by_base(at_level).mean(axis=0).dropna()
        axis.scatter(np.full(len(bases), level + shift), bases, s=8, color=colour, alpha=0.45, linewidth=0, zorder=3)
        means.append((level + shift, *interval(bases, confidence, probability=True)))
    x, mean, low, high = np.array(means).T
    line, marker = look
    if joined:
        axis.plot(x, mean, linestyle=line, color=colour, linewidth=1.7, zorder=4)
    axis.vlines(x, low, high, color=colour, linewidth=1.3, zorder=4)
    axis.scatter(x, mean, s=26, marker=marker, color=colour, edgecolor="white", linewidth=0.7, zorder=5)


def _legend(axis: "Axes", values: Places, other: str) -> None:
    """Which line is of which value."""
    from matplotlib.lines import Line2D

    handles = [
        Line2D([], [], linestyle=line, marker=marker, markersize=4, color="#555555", linewidth=1.2, label=label)
        for (line, marker), label in zip(_LOOKS, map(values.label, values.values), strict=False)
    ]
    short = other.rpartition(".")[2]
    look = {"fontsize": 7.5, "title_fontsize": 7.5, "frameon": False, "handlelength": 3}
    axis.legend(handles=handles, title=short, loc="best", **look)
