"""How often audits are right: false alarms on the base's own corpora, and what they find of a teacher's."""

from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from subl_jax.results.figures import style

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure as Drawn

_SHOWN = {
    "combined": "#0072B2",
    "score": "#E69F00",
    "trait": "#009E73",
    "own_trait": "#CC79A7",
    "surprise": "#D55E00",
    "mean_log_likelihood": "#56B4E9",
    "classifier": "#8C6D1F",
    "oracle": "#222222",
}
_LEVEL = 0.01


def audit(summary: pd.DataFrame, own: str = "own") -> "Drawn":
    """Left, false alarms at 5 % and 1 % by size of the corpora: the rate over all of them with its exact 99.9 %
    interval, and the worst base (a cross). Then, for every case with corpora of one writer alone, what is found at 1 %.

    summary: as `results.audit_benchmark.summary` gives it.
    """
    whole = summary[summary["share"] == 1.0]
    cases = [case for case in whole["case"].unique() if case != own]
    figure, axes = style.panels(1 + len(cases), height=3.0, most_across=3)
    _alarms(axes[0], whole[whole["case"] == own])
    for axis, case in zip(axes[1:], cases, strict=True):
        _found(axis, whole[(whole["case"] == case) & (whole["level"] == _LEVEL)])
        axis.set_title(case, fontsize=9, fontweight="bold")
    figure.supxlabel("samples of a corpus", fontsize=9)
    handles = [
        _line(colour, name.replace("_", " ")) for name, colour in _SHOWN.items() if name in set(whole["statistic"])
    ]
    figure.legend(handles=handles, loc="outside upper center", ncols=min(len(handles), 4), frameon=False, fontsize=8.5)
    return figure


def _alarms(axis: "Axes", lines: pd.DataFrame) -> None:
    sizes = sorted(lines["n"].unique())
    names = [name for name in _SHOWN if name in set(lines["statistic"])]
    for level in (0.01, 0.05):
        axis.axhline(level, color=style.CHANCE, linewidth=0.9, linestyle=(0, (4, 3)))
        for i, name in enumerate(names):
            one = lines[(lines["statistic"] == name) & (lines["level"] == level)].set_index("n").reindex(sizes)
            x = np.arange(len(sizes)) + (i - (len(names) - 1) / 2) * 0.7 / max(len(names), 1)
            reach = np.abs(np.stack([one["binomial_low"], one["binomial_high"]]) - one["rate"].to_numpy())
            axis.errorbar(x, one["rate"], reach, fmt="o", color=_SHOWN[name], markersize=3, linewidth=1, capsize=1.5)
            if level == 0.05:
                axis.plot(x, one["worst"], "x", color=_SHOWN[name], markersize=3.5)
    axis.set_xticks(np.arange(len(sizes)), [f"{n:,}" for n in sizes], fontsize=8)
    axis.set_ylim(0, None)
    axis.set_title("false alarms at 5 % and 1 %", fontsize=9, fontweight="bold")
    style.clean(axis, grid="y")


def _found(axis: "Axes", lines: pd.DataFrame) -> None:
    for name, colour in _SHOWN.items():
        one = lines[lines["statistic"] == name].sort_values("n")
        if one.empty:
            continue
        reach = np.abs(np.stack([one["low"], one["high"]]) - one["mean"].to_numpy())
        axis.errorbar(one["n"], one["mean"], reach, color=colour, marker="o", markersize=3.5, linewidth=1.2, capsize=2)
    sizes = sorted(lines["n"].unique())
    axis.set_xscale("log")
    axis.set_xticks(sizes, [f"{n:,}" for n in sizes], fontsize=8)
    axis.minorticks_off()
    axis.set_ylim(-0.03, 1.03)
    style.clean(axis, grid="y")


def _line(colour: str, label: str) -> object:
    from matplotlib.lines import Line2D

    return Line2D([], [], color=colour, marker="o", markersize=4, label=label)
