"""What a figure is: a name, a place on the page, a caption, and how it is drawn from the tables.

Adding one is one file in this folder with a subclass of `Figure`; a subclass in a user's own sweep file is found too.
"""

import abc
import dataclasses
import functools
import importlib
import pkgutil
from collections.abc import Mapping
from typing import TYPE_CHECKING, ClassVar, Literal

import pandas as pd

from subl_jax.results import cells, comparisons, one_step
from subl_jax.results.formats import arm_label
from subl_jax.results.units import replication_unit
from subl_jax.specs.metrics import OF_TRAINING, Metric

if TYPE_CHECKING:
    import matplotlib.figure


@dataclasses.dataclass(frozen=True)
class Tables:
    """What figures are drawn from: the tables of one cell, or of the whole sweep.

    Attributes:
      base_rate: trait → chance level; may lack traits.
      colours: arm → colour, the same in all figures of a sweep.
      metrics: name → what it is called and how it is drawn; may lack metrics.
    """

    runs: pd.DataFrame
    curves: pd.DataFrame
    summary: pd.DataFrame
    comparisons: pd.DataFrame
    datasets: pd.DataFrame
    base_rate: Mapping[str, float]
    colours: Mapping[str, str]
    metrics: Mapping[str, Metric] = dataclasses.field(default_factory=lambda: OF_TRAINING)

    @functools.cached_property
    def steps(self) -> pd.DataFrame:
        """The theorem's table."""
        return one_step.table(self.runs, self.curves)

    @property
    def confidence(self) -> float:
        return float(self.summary["confidence"].iloc[0]) if len(self.summary) else 0.95


class Figure(abc.ABC):
    """A figure of the report.

    Attributes:
      name: of its file, `figures/<name>.png`.
      scope: "cell", once for each setting that has a section; "sweep", once.
      section: the section of the page that a figure of the sweep stands in.
      place: figures of a section stand in the order of it.
    """

    name: ClassVar[str]
    scope: ClassVar[Literal["cell", "sweep"]] = "cell"
    section: ClassVar[Literal["across", "theorem"]] = "across"
    place: ClassVar[int] = 100

    registered: ClassVar[dict[str, type["Figure"]]] = {}

    def __init_subclass__(cls) -> None:
        Figure.registered[cls.name] = cls

    @abc.abstractmethod
    def draw(self, tables: Tables) -> "matplotlib.figure.Figure | None":
        """The figure; None where its data is missing."""

    @abc.abstractmethod
    def caption(self, tables: Tables) -> str:
        """What is drawn, in sentences, for someone who has not seen such a figure before."""

    @staticmethod
    def found() -> list["Figure"]:
        """Every figure that there is, in the order of the page."""
        package = __name__.rpartition(".")[0]
        for module in pkgutil.iter_modules(importlib.import_module(package).__path__):
            importlib.import_module(f"{package}.{module.name}")
        return sorted((cls() for cls in Figure.registered.values()), key=lambda figure: (figure.place, figure.name))


# --- sentences that several captions share ---


def replication(runs: pd.DataFrame) -> str:
    """How many runs and base seeds each arm has."""
    ok = runs[runs["status"] == "ok"]
    counts = [
        f"{arm_label(arm)} n = {len(rows)} ({replication_unit(rows).nunique()} base seeds)"
        for arm in cells.ordered_arms(runs)
        if len(rows := ok[ok["arm"] == arm])
    ]
    return f"Runs: {'; '.join(counts)}." if counts else ""


def partly(runs: pd.DataFrame, most: int, thing: str) -> str:
    """That only `most` traits are shown; nothing where there are no more."""
    total = runs["trait"].nunique()
    return "" if total <= most else f"The first {most} of {total} traits have a {thing}; pooled values use them all. "


def without(summary: pd.DataFrame) -> str:
    """Which pairs the averages over all traits leave out; nothing where all runs ended well."""
    count = comparisons.left_out(summary)
    return f"All traits: without {comparisons.pairs_in_words(count)}. " if count else ""


def level(summary: pd.DataFrame) -> str:
    """What the intervals of a summary are."""
    if summary.empty:
        return "confidence intervals"
    name = {"t": "t intervals (on the logit scale)", "bca": "BCa bootstrap intervals"}[summary["interval"].iloc[0]]
    return f"{summary['confidence'].iloc[0]:.0%} {name} over base seeds"
