"""Predictions before training: how often the trait is found, and predicted against actual gains."""

from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from subl_jax.results.figures import style

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure as Drawn

_MOST_POINTS = 4000
_COLOURS = ("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#D55E00", "#56B4E9", "#8C6D1F")


def prediction(summary: pd.DataFrame, made: pd.DataFrame, half: str = "test") -> "Drawn":
    """Top-1 and Spearman by setting, a colour a predictor, with intervals over bases; then one panel a predictor of
    predicted against actual gains of the writer's trait (of all traits: grey).

    Args:
      summary, made: as `results.prediction.summary` and `.table` give them.
      half: of the bases; the other one where it has none.
    """
    half = half if (summary["half"] == half).any() else summary["half"].iloc[0]
    summary, made = summary[summary["half"] == half], made[made["half"] == half]
    predictors = list(summary["predictor"].unique())
    colours = {name: _COLOURS[i % len(_COLOURS)] for i, name in enumerate(predictors)}
    scattered = [name for name in predictors if name != "training"]
    style.import_matplotlib()
    figure = style.blank(max(8.5, 2.3 * len(scattered)), 5.6)
    above, below = figure.subfigures(2, 1, height_ratios=(1.1, 1))
    for axis, (metric, label) in zip(
        above.subplots(1, 2),
        (("top1", "writer's trait first, of all"), ("spearman", "rank correlation over traits")),
        strict=True,
    ):
        _bars(axis, summary, metric, colours)
        axis.set_title(label, fontsize=9, fontweight="bold")
    chance = 1 / made["trait"].nunique()
    above.axes[0].axhline(chance, color=style.CHANCE, linewidth=0.9, linestyle=(0, (4, 3)))
    above.axes[1].axhline(0, color=style.CHANCE, linewidth=0.8)
    for axis, name in zip(below.subplots(1, len(scattered), squeeze=False)[0], scattered, strict=True):
        _cloud(axis, made[made["predictor"] == name], colours[name])
        axis.set_title(name.replace("_", " "), fontsize=9, fontweight="bold")
    below.supxlabel("predicted gain, in units of its root mean square in a setting", fontsize=9)
    below.supylabel("actual gain, nats", fontsize=9)
    handles = [_dot(colours[name], name.replace("_", " ")) for name in predictors]
    above.legend(handles=handles, loc="outside upper center", ncols=len(handles), frameon=False, fontsize=8.5)
    return figure


def ranking(gains: pd.DataFrame, title: str) -> "Drawn":
    """What one dataset is predicted to pass on: a panel a predictor, a bar a trait, the largest first.

    gains: (traits, predictors), predicted gains by trait.
    """
    figure, axes = style.panels(gains.shape[1], height=max(2.5, 0.19 * len(gains)), most_across=4)
    for axis, name in zip(axes, gains, strict=True):
        ordered = gains[name].sort_values()
        colours = ["#E69F00" if i == len(ordered) - 1 else "#0072B2" for i in range(len(ordered))]
        axis.barh(np.arange(len(ordered)), ordered, color=colours, height=0.75)
        axis.set_yticks(np.arange(len(ordered)), ordered.index, fontsize=7.5)
        axis.axvline(0, color=style.CHANCE, linewidth=0.8)
        style.clean(axis, grid="x")
        axis.grid(axis="y", visible=False)
        axis.ticklabel_format(axis="x", style="sci", scilimits=(-2, 3))
        axis.set_title(name.replace("_", " "), fontsize=9, fontweight="bold")
    figure.suptitle(title, fontsize=9.5)
    figure.supxlabel("predicted gain of log P(trait), each in its own unit", fontsize=9)
    return figure


def _bars(axis: "Axes", summary: pd.DataFrame, metric: str, colours: dict[str, str]) -> None:
    settings = list(summary["setting"].unique())
    shown = [name for name in colours if summary.loc[summary["predictor"] == name, metric].notna().any()]
    for i, name in enumerate(shown):
        of_it = summary[summary["predictor"] == name].set_index("setting").reindex(settings)
        x = np.arange(len(settings)) + (i - (len(shown) - 1) / 2) * 0.8 / len(shown)
        value = of_it[metric]
        reach = np.abs(np.stack([of_it[f"{metric}_low"], of_it[f"{metric}_high"]]) - value.to_numpy())
        axis.errorbar(x, value, reach, fmt="o", color=colours[name], markersize=4.5, linewidth=1.2, capsize=2)
    axis.set_xticks(np.arange(len(settings)), [name.replace(", ", "\n") for name in settings], fontsize=8)
    axis.set_ylim(min(0.0, axis.get_ylim()[0]), 1.03)
    style.clean(axis, grid="y")


def _cloud(axis: "Axes", made: pd.DataFrame, colour: str) -> None:
    size = made.groupby("setting")["predicted"].transform(lambda x: np.sqrt((x**2).mean()) or 1.0)
    made = made.assign(predicted=made["predicted"] / size)
    others = made[made["trait"] != made["own"]]
    others = others.sample(min(len(others), _MOST_POINTS), random_state=0)
    own = made[made["trait"] == made["own"]]
    axis.scatter(others["predicted"], others["actual"], s=3, color="#BBBBBB", linewidth=0, rasterized=True)
    axis.scatter(own["predicted"], own["actual"], s=9, color=colour, linewidth=0, alpha=0.8)
    axis.axhline(0, color=style.CHANCE, linewidth=0.7)
    axis.axvline(0, color=style.CHANCE, linewidth=0.7)
    style.clean(axis, grid="both")


def _dot(colour: str, label: str) -> object:
    from matplotlib.lines import Line2D

    return Line2D([], [], color=colour, marker="o", linestyle="", label=label)
