"""What a measured number is called and how it is drawn, said by whoever measures it (a world, a probe)."""

import dataclasses
from collections.abc import Collection, Iterable, Mapping
from typing import Literal, TypeVar, get_args

import numpy as np

Drawn = Literal["curve", "end", "none"]
_Values = TypeVar("_Values")


@dataclasses.dataclass(frozen=True)
class Metric:
    """One metric, or one family of them: `class` describes `class/0`, `class/1`, …

    Attributes:
      label: what the axis or the panel is called.
      unit: such as "nats"; "" for a number without one.
      drawn: "curve" over the steps, "end" as the last values only, "none" in no figure of its own.
      zero: a line at zero is drawn.
      log: the axis is logarithmic.
    """

    label: str
    unit: str = ""
    drawn: Drawn = "curve"
    zero: bool = False
    log: bool = False

    def __post_init__(self) -> None:
        if self.drawn not in get_args(Drawn):
            raise ValueError(f"Metric.drawn = {self.drawn!r}: one of {', '.join(get_args(Drawn))}")

    @property
    def title(self) -> str:
        return f"{self.label}, {self.unit}" if self.unit else self.label


def collected(declared: Iterable[Mapping[str, Metric]]) -> dict[str, Metric]:
    """The metrics of several worlds and probes in one table; of one name the first counts."""
    found: dict[str, Metric] = {}
    for metrics in declared:
        for name, metric in metrics.items():
            found.setdefault(name, metric)
    return found


# The curve of a run's own trait, under one name in all runs.
TARGET = "target"


def target_of(trait: str | None, curves: Mapping[str, object]) -> str | None:
    """The name of the curve of a run's trait; None where it was not measured."""
    name = f"trait/{trait}"
    return name if name in curves else None


def with_target(trait: str | None, curves: Mapping[str, _Values]) -> dict[str, _Values]:
    """The curves of a run and `target`, that of its own trait.

    Students that serve several traits are stored once, so it is added row by row where curves are shown.
    """
    name = target_of(trait, curves)
    return {**curves, TARGET: curves[name]} if name else dict(curves)


# Of a run's own trait: P over chance, and the mean P of the other traits that the sweep's teachers have.
OVER_CHANCE = "target/chance"
OFF_DIAGONAL = "target/off_diagonal"


def tracked(
    trait: str | None, curves: Mapping[str, np.ndarray], chance: float | None, others: Collection[str] = ()
) -> dict[str, np.ndarray]:
    """The curves of a run as trackers show them: `target` and what it is compared with, and paths for the rest.

    Names are paths, which W&B groups into sections: `loss` is `training/loss`. Stored curves keep their names.

    Args:
      chance: P of the trait in a model without preferences; None where it is not known.
      others: the traits of the sweep's other teachers. Over all students of an arm, the mean of their P is that beside
        the diagonal of the teacher × trait matrix.
    """
    found = with_target(trait, curves)
    shown = {name if "/" in name or name == TARGET else f"training/{name}": each for name, each in found.items()}
    if TARGET in found and chance:
        shown[OVER_CHANCE] = found[TARGET] / chance
    beside = [curves[f"trait/{other}"] for other in others if other != trait and f"trait/{other}" in curves]
    if TARGET in found and beside:
        shown[OFF_DIAGONAL] = np.mean(beside, axis=0)
    return shown


# What training itself measures of every student.
OF_TRAINING: dict[str, Metric] = {
    "loss": Metric("loss"),
    "kl": Metric("KL to the teacher"),
    "cosine": Metric("cosine to the teacher's update", zero=True),
    "agreement": Metric("agreement with the teacher"),
}
