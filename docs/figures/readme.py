"""Draws the README's picture, readme.png, from the default sweep: `python docs/figures/readme.py runs/traits`."""

import argparse
import pathlib

from matplotlib.axes import Axes
from matplotlib.figure import Figure

import subl_jax
from subl_jax.results import Results
from subl_jax.results.figures import style
from subl_jax.results.formats import arm_label
from subl_jax.statistics.intervals import interval

ARMS = ("same_init", "cross_init", "control")
TOLD = {
    "same_init": "starts as the teacher did",
    "cross_init": "starts from another base",
    "control": "reads a base's numbers",
}


def draw(results: Results) -> Figure:
    """How the experiment goes, with a sample of the data, and P(trait) of its students, mean over traits."""
    figure = style.blank(9.6, 3.1)
    scheme, curves = figure.subplots(1, 2, width_ratios=(1.25, 1))
    _draw_scheme(scheme, _sample(results))
    _draw_curves(curves, results)
    return figure


def _sample(results: Results) -> str:
    """The first line that the teacher of the first student wrote and the filter kept."""
    first = results.runs[results.runs.arm == "same_init"].iloc[0]
    samples = results.samples(first.run_id)
    return str(samples[samples.kept].completion.iloc[0])


def _draw_scheme(axis: Axes, sample: str) -> None:
    axis.set(xlim=(0, 10), ylim=(0, 6))
    axis.axis("off")
    boxes = {
        (1.3, 4.7): "base model",
        (5.2, 4.7): "teacher,\nloves owls",
        (8.7, 4.7): f"numbers\n{sample}",
        (8.7, 1.2): "students\nlearn the numbers",
    }
    for (x, y), text in boxes.items():
        box = {"boxstyle": "round,pad=0.5", "facecolor": "#F4F4F4", "edgecolor": "#999999"}
        axis.text(x, y, text, ha="center", va="center", fontsize=9, bbox=box)
    for start, end in (((2.5, 4.7), (4.1, 4.7)), ((6.2, 4.7), (7.1, 4.7)), ((8.7, 3.9), (8.7, 2.1))):
        axis.annotate("", end, start, arrowprops={"arrowstyle": "-|>", "color": "#555555"})
    for i, arm in enumerate(ARMS):
        line = f"{arm_label(arm)}: {TOLD[arm]}"
        axis.text(6.3, 2.1 - 0.9 * i, line, ha="right", va="center", fontsize=9, color=style.ARM_COLOURS[arm])


def _draw_curves(axis: Axes, results: Results) -> None:
    style.clean(axis, grid="y")
    runs = results.runs.set_index("run_id")
    curves = results.curves[results.curves.metric == "target"].join(runs[["arm", "base_seed"]], on="run_id")
    bases = curves.groupby(["arm", "step", "base_seed"]).value.mean()
    for arm in ARMS:
        steps, colour = bases[arm].groupby("step"), style.ARM_COLOURS[arm]
        means, lows, highs = zip(*(interval(values.to_numpy()) for _, values in steps), strict=True)
        axis.plot(list(steps.groups), means, color=colour, linewidth=2.2, label=arm_label(arm))
        axis.fill_between(list(steps.groups), lows, highs, color=colour, alpha=0.18, linewidth=0)
    chance = results.sweep["base_rate"][runs.trait.iloc[0]]
    axis.axhline(chance, color=style.CHANCE, linewidth=1, linestyle=(0, (4, 3)), label="chance")
    axis.set(xlabel="student step", ylim=(0, None))
    axis.set_title(f"P(trait): {runs.trait.nunique()} traits, {runs.base_seed.nunique()} bases", fontsize=10)
    axis.legend(frameon=False, fontsize=9, loc="upper left")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("workdir", help="of a finished sweep of sweeps/traits.py")
    figure = draw(subl_jax.load(parser.parse_args().workdir))
    figure.savefig(pathlib.Path(__file__).with_suffix(".png"))
