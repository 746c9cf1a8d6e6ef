"""Where the values of a swept field stand on an axis, and which of them have a label."""

import dataclasses
from collections.abc import Sequence
from typing import TYPE_CHECKING, Self

import numpy as np
import pandas as pd

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_LOGARITHMIC_FROM = 8.0  # the largest value over the smallest: below it, a logarithmic axis looks like a linear one
_MARGIN = 0.08  # left and right of the outermost places
_CHARACTER, _BETWEEN = 0.062, 0.07  # inches: a character of a label, the least gap between two labels


@dataclasses.dataclass(frozen=True)
class Places:
    """The values of one field, and the place of each in [0, 1].

    ordered: they are numbers, so that the points between two places mean something.
    logarithmic: places go by logarithms; a zero, which has none, stands left of the others.
    """

    values: tuple[object, ...]
    at: tuple[float, ...]
    ordered: bool
    logarithmic: bool

    @classmethod
    def of(cls, column: pd.Series) -> Self:
        known = column.dropna()
        if not is_number(column):
            words = tuple(dict.fromkeys(known.astype(str)))
            return cls(words, tuple(_stretched(np.arange(len(words)))), ordered=False, logarithmic=False)
        values = np.sort(known.astype(float).unique())
        linear, logarithms = _stretched(values), _logarithms(values)
        # Whichever keeps the closest two further apart.
        chosen = logarithms is not None and np.diff(logarithms).min() > np.diff(linear).min()
        at = logarithms if chosen else linear
        return cls(tuple(map(float, values)), tuple(map(float, at)), ordered=True, logarithmic=bool(chosen))

    def found(self, column: pd.Series) -> pd.Series:
        """The place of each value of `column`; NaN for a missing one."""
        keys = column.astype(float) if self.ordered else column.map(str, na_action="ignore")
        return keys.map(dict(zip(self.values, self.at, strict=True))).astype(float)

    def label(self, value: object) -> str:
        return f"{value:g}" if self.ordered else str(value)

    def draw(self, axis: "Axes", width: float) -> None:
        """Ticks at the values. Of labels that would touch on an axis `width` inches wide, later ones are left out."""
        labels = [self.label(value) for value in self.values]
        if not self.ordered:
            axis.set_xticks(self.at, labels, rotation=20, fontsize=7.5)
        else:
            shown = _apart(self.at, labels, width)
            axis.set_xticks(self.at, [label if kept else "" for label, kept in zip(labels, shown, strict=True)])
            axis.tick_params(axis="x", labelsize=7.5)
        axis.set_xlim(-_MARGIN, 1 + _MARGIN)


def is_number(column: pd.Series) -> bool:
    return pd.api.types.is_numeric_dtype(column) and not pd.api.types.is_bool_dtype(column)


def _stretched(values: np.ndarray) -> np.ndarray:
    span = values[-1] - values[0]
    return (values - values[0]) / (span or 1)


def _logarithms(values: np.ndarray) -> np.ndarray | None:
    """The places on a logarithmic axis, a zero one usual gap left of the others; None where there is no such axis."""
    positive = values[values > 0]
    if values[0] < 0 or len(positive) < 2 or positive[-1] / positive[0] < _LOGARITHMIC_FROM:
        return None
    at = np.log(positive)
    if values[0] == 0:
        at = np.concatenate([[at[0] - np.diff(at).mean()], at])
    return _stretched(at)


def _apart(at: Sequence[float], labels: Sequence[str], width: float) -> list[bool]:
    """Which labels can stand, from the left; the last one always does."""
    half = [len(label) * _CHARACTER / 2 for label in labels]
    middle = [place * width / (1 + 2 * _MARGIN) for place in at]

    def touch(i: int, j: int) -> bool:
        return middle[j] - half[j] < middle[i] + half[i] + _BETWEEN

    kept: list[int] = []
    for i in range(len(labels)):
        if not kept or not touch(kept[-1], i):
            kept.append(i)
    last = len(labels) - 1
    if kept[-1] != last:
        kept = [i for i in kept if i == 0 or not touch(i, last)]
        kept += [] if touch(kept[-1], last) else [last]
    return [i in kept for i in range(len(labels))]
