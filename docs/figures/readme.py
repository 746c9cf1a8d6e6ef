"""Draws the README's picture, readme.png, from the default sweep: `python docs/figures/readme.py runs/traits`."""

import argparse
import pathlib
import textwrap

from matplotlib.axes import Axes
from matplotlib.figure import Figure

import subl_jax
from subl_jax.results import Results
from subl_jax.results.figures import style
from subl_jax.results.formats import arm_label
from subl_jax.statistics.intervals import interval

ARMS = ("same_init", "cross_init", "control")
TOLD = {"same_init": "same start", "cross_init": "another start", "control": "same start"}
# Models of one start have one colour; whoever wrote the numbers stands left of them.
START, ANOTHER = "#CFE3F2", "#F8E2BC"
INK = "#333333"
_LINE = 15  # characters of a sample


def draw(results: Results) -> Figure:
    """How the experiment goes, with samples of the data, and P(trait) of its students, mean over traits."""
    figure = style.blank(10.6, 3.7)
    scheme, curves = figure.subplots(1, 2, width_ratios=(1.6, 1))
    _draw_scheme(scheme, {arm: _sample(results, arm) for arm in ("same_init", "control")}, _trait(results))
    _draw_curves(curves, results)
    return figure


def _first(results: Results, arm: str) -> str:
    return results.runs[results.runs.arm == arm].run_id.iloc[0]


def _trait(results: Results) -> str:
    return results.runs[results.runs.arm == "same_init"].trait.iloc[0]


def _sample(results: Results, arm: str) -> str:
    """The first line that the writer of the first student's data wrote and the filter kept."""
    samples = results.samples(_first(results, arm))
    return str(samples[samples.kept].completion.iloc[0])


def _draw_scheme(axis: Axes, samples: dict[str, str], trait: str) -> None:
    """Writers, what they write, and the students of each arm, in its colour, from left to right."""
    axis.set(xlim=(0, 12), ylim=(0, 7))
    axis.axis("off")
    heads = {1.2: f"A model\nloves {trait}s.", 4.6: "It writes\nonly numbers.", 9.0: "Others learn\nthe numbers."}
    for x, head in heads.items():
        axis.text(x, 7.1, head, ha="center", va="top", fontsize=10.5, fontweight="bold", color=INK)
    heights = {"same_init": 4.9, "cross_init": 3.1, "control": 0.9}
    written = {"same_init": 4.0, "control": 0.9}
    for arm, y in written.items():
        _draw_model(axis, 1.2, y, START, f"♥ {trait}" if arm == "same_init" else "loves\nnone")
        _draw_arrow(axis, (2.05, y), (2.95, y), INK)
        box = {"boxstyle": "square,pad=0.6", "facecolor": "white", "edgecolor": "#999999"}
        look = {"fontsize": 9, "family": "monospace", "color": INK, "bbox": box}
        axis.text(4.6, y, textwrap.fill(samples[arm], _LINE), ha="center", va="center", **look)
    for arm, y in heights.items():
        colour, origin = style.ARM_COLOURS[arm], written["control" if arm == "control" else "same_init"]
        _draw_arrow(axis, (6.3, origin), (7.75, y), colour)
        _draw_model(axis, 8.6, y, ANOTHER if arm == "cross_init" else START, "?", colour)
        axis.text(9.5, y + 0.25, arm_label(arm), va="center", fontsize=10.5, fontweight="bold", color=colour)
        axis.text(9.5, y - 0.35, TOLD[arm], va="center", fontsize=9.5, color=INK)


def _draw_model(axis: Axes, x: float, y: float, face: str, text: str, edge: str = INK) -> None:
    axis.scatter([x], [y], s=1900, color=face, edgecolor=edge, linewidth=1.8, zorder=2)
    axis.text(x, y, text, ha="center", va="center", fontsize=9.5, color=INK, zorder=3)


def _draw_arrow(axis: Axes, start: tuple[float, float], end: tuple[float, float], colour: str) -> None:
    axis.annotate("", end, start, arrowprops={"arrowstyle": "-|>", "color": colour, "linewidth": 1.8})


def _draw_curves(axis: Axes, results: Results) -> None:
    style.clean(axis, grid="y")
    runs = results.runs.set_index("run_id")
    curves = results.curves[results.curves.metric == "target"].join(runs[["arm", "base_seed"]], on="run_id")
    bases = curves.groupby(["arm", "step", "base_seed"]).value.mean()
    ends = {}
    for arm in ARMS:
        steps, colour = bases[arm].groupby("step"), style.ARM_COLOURS[arm]
        intervals = (interval(values.to_numpy(), probability=True) for _, values in steps)
        means, lows, highs = zip(*intervals, strict=True)
        axis.plot(list(steps.groups), means, color=colour, linewidth=2.4, label=arm_label(arm))
        axis.fill_between(list(steps.groups), lows, highs, color=colour, alpha=0.18, linewidth=0)
        ends[arm] = means[-1]
    chance = results.sweep["base_rate"][runs.trait.iloc[0]]
    axis.axhline(chance, color=style.CHANCE, linewidth=1, linestyle=(0, (4, 3)), label="chance")
    last = curves.step.max()
    axis.set(xlim=(0, last), ylim=(0, 1.25 * max(*ends.values(), chance)), xlabel="steps of learning numbers")
    axis.yaxis.set_major_formatter(lambda value, _: f"{100 * value:.0f} %")
    apart = 0.09 * axis.get_ylim()[1]
    places = dict.fromkeys(ARMS, -1.0)
    for arm in sorted(ARMS, key=ends.get):  # from below, so that no two labels touch
        places[arm] = max(ends[arm], max(places.values()) + apart)
    shift = (places["control"] - ends["control"]) / 2
    for arm in ARMS:
        label = f" {100 * ends[arm]:.0f} % {arm_label(arm)}"
        y = places[arm] - (shift if arm != "same_init" else 0)
        axis.text(last, y, label, color=style.ARM_COLOURS[arm], va="center", fontsize=9.5, fontweight="bold")
    axis.text(0.02 * last, 0.8 * chance, "chance", va="top", fontsize=8.5, color=style.CHANCE)
    axis.set_title("How often they then name\nthe first one's favourite", fontsize=10.5, fontweight="bold", color=INK)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("workdir", help="of a finished sweep of sweeps/traits.py")
    figure = draw(subl_jax.load(parser.parse_args().workdir))
    figure.savefig(pathlib.Path(__file__).with_suffix(".png"), dpi=130)
