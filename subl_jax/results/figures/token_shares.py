"""P(trait) at the end against the share of tokens that was masked, kept or exchanged, by what chose them."""

from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from subl_jax.results.figures import style
from subl_jax.results.figures.base import Figure, Tables
from subl_jax.results.formats import arm_label
from subl_jax.results.units import by_base
from subl_jax.statistics.intervals import interval

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure as Drawn

_FIELD = "student.objective"
_COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#8C6D1F", "#000000", "#7F3C8D")
_ALL, _CONTROL = "same_init", "control"
_TITLES = {
    **{f"weighted {tokens} False": f"without the {tokens} tokens" for tokens in ("top", "bottom")},
    **{f"weighted {tokens} True": f"only the {tokens} tokens" for tokens in ("top", "bottom")},
    **{f"erased {tokens} ": f"{tokens} tokens erased" for tokens in ("top", "bottom")},
    **{
        f"replaced {tokens} {what}": f"{tokens} tokens: {what} replaced"
        for tokens in ("top", "bottom")
        for what in ("label", "input", "both")
    },
}


class TokenShares(Figure):
    name = "token_shares"
    scope = "sweep"
    place = 5

    def draw(self, tables: Tables) -> "Drawn | None":
        return token_shares(tables.runs, tables.confidence)

    def caption(self, tables: Tables) -> str:
        return (
            "P(trait) at the end, mean over traits and then bases, against the share of tokens that a detector chose; "
            "a panel for each thing that was done to them. Whiskers: "
            f"{tables.confidence:.0%} t intervals over base seeds. Filled: of the teacher's data; hollow and dashed: "
            "the same selection of the control's data, which says what selecting does by itself. Bands: "
            "students of all tokens, and the control."
        )


def token_shares(runs: pd.DataFrame, confidence: float = 0.95) -> "Drawn | None":
    """A panel per intervention; a line per detector (an arm, up to " on …") and data."""
    rows = selections(runs)
    if rows.empty:
        return None
    detectors = list(rows["detector"].unique())
    colours = {name: _COLOURS[i % len(_COLOURS)] for i, name in enumerate(detectors)}
    titles = [title for title in _TITLES.values() if title in set(rows["intervention"])]
    figure, axes = style.panels(len(titles), height=3.2, most_across=3)
    for axis, title in zip(axes, titles, strict=True):
        axis.set_title(title, fontsize=9.5, fontweight="bold")
        _draw_references(axis, runs, confidence)
        of_panel = rows[rows["intervention"] == title]
        for (detector, of_control), line in of_panel.groupby(["detector", "of_control"], sort=False):
            shift = (detectors.index(detector) - (len(detectors) - 1) / 2) * 0.006
            _draw_line(axis, line, shift, colours[detector], of_control, confidence)
        axis.set_xlim(-0.03, max(0.2, float(of_panel["share"].max()) + 0.06))
        axis.tick_params(labelbottom=True, labelleft=True)
    top = max(axis.get_ylim()[1] for axis in axes)
    for axis in axes:  # so that panels compare
        axis.set_ylim(0.0, min(top, 1.02))
    figure.supxlabel("share of all tokens that were chosen", fontsize=9.5)
    figure.supylabel("P(trait) at the end", fontsize=9.5)
    _legend(figure, colours)
    return figure


def selections(runs: pd.DataFrame) -> pd.DataFrame:
    """The ok runs on chosen tokens, with columns `detector`, `of_control`, `intervention`, `share`."""
    if f"{_FIELD}.share" not in runs.columns or f"{_FIELD}.tokens" not in runs.columns:
        return pd.DataFrame()
    rows = runs[(runs["status"] == "ok") & runs[f"{_FIELD}.tokens"].notna()]
    how = pd.Series("", index=rows.index)
    for name in ("keep", "what"):
        if f"{_FIELD}.{name}" in rows.columns:
            given = rows[f"{_FIELD}.{name}"]
            how = how.where(given.isna(), given.map(lambda x: str(bool(x)) if name == "keep" else str(x)))  # noqa: B023
    named = rows[f"{_FIELD}.kind"].astype(str) + " " + rows[f"{_FIELD}.tokens"].astype(str) + " " + how
    return rows.assign(
        detector=rows["arm"].str.partition(" on ")[0],
        of_control=rows["data_trait"].isna(),
        intervention=named.map(lambda name: _TITLES.get(name, name)),
        share=rows[f"{_FIELD}.share"].astype(float),
    )


def _draw_references(axis: "Axes", runs: pd.DataFrame, confidence: float) -> None:
    for arm in (_ALL, _CONTROL):
        of_arm = runs[runs["arm"] == arm]
        if of_arm.empty:
            continue
        mean, low, high = interval(by_base(of_arm).mean(axis=0), confidence, probability=True)
        axis.axhline(mean, color=style.ARM_COLOURS[arm], linewidth=1.2, zorder=2)
        if np.isfinite(low):
            axis.axhspan(low, high, color=style.ARM_COLOURS[arm], alpha=0.12, linewidth=0, zorder=1)


def _draw_line(
    axis: "Axes", rows: pd.DataFrame, shift: float, colour: str, of_control: bool, confidence: float
) -> None:
    points = [
        (share + shift, *interval(by_base(of_share).mean(axis=0), confidence, probability=True))
        for share, of_share in rows.groupby("share")
    ]
    x, mean, low, high = np.array(points).T
    axis.plot(x, mean, "--" if of_control else "-", color=colour, linewidth=1.3, zorder=4)
    axis.vlines(x, low, high, color=colour, linewidth=1.2, alpha=0.8, zorder=3)
    face = "white" if of_control else colour
    axis.scatter(x, mean, s=22, facecolor=face, edgecolor=colour, linewidth=1.1, zorder=5)


def _legend(figure: "Drawn", colours: dict[str, str]) -> None:
    from matplotlib.lines import Line2D

    handles = [Line2D([], [], color=colour, linewidth=2.5, label=arm_label(name)) for name, colour in colours.items()]
    look = {"color": "#555555", "marker": "o", "linewidth": 1.3}
    handles += [
        Line2D([], [], **look, label="the teacher's data"),
        Line2D([], [], **look, linestyle="--", markerfacecolor="white", label="the control's data"),
        Line2D([], [], color=style.ARM_COLOURS[_ALL], linewidth=1.2, label="all tokens"),
        Line2D([], [], color=style.ARM_COLOURS[_CONTROL], linewidth=1.2, label="control"),
    ]
    style.legend_above(figure, handles, fontsize=8.5)
