"""What a channel is: what a teacher is asked to write, and what of it counts as data.

A member is one file with a `Channel` and its `Filter`. Both are specs: what they decide is part of a key.
"""

import abc
import collections
import dataclasses
from collections.abc import Iterable, Sequence
from typing import ClassVar, NamedTuple

from subl_jax.channels.graph import Graph
from subl_jax.specs import Spec


@dataclasses.dataclass(frozen=True)
class Filter(Spec, abc.ABC):
    """Which texts count as data.

    `REASONS` are all the reasons for which a text can be dropped, in the order of the checks.
    """

    REASONS: ClassVar[tuple[str, ...]] = ()

    @abc.abstractmethod
    def reasons(self, texts: Sequence[str]) -> list[str | None]:
        """Of each text None where it is kept, else the first of `REASONS` that applies."""

    def retention(self, reasons: Iterable[str | None]) -> dict[str, int | float]:
        """How much was kept: `drawn`, `kept`, `kept_fraction` (0 when nothing was drawn), `why/<reason>` counts."""
        return retention(reasons, self.REASONS)


def retention(reasons: Iterable[str | None], known: Sequence[str]) -> dict[str, int | float]:
    """As `Filter.retention`; `known` are the reasons that are listed even where none was met."""
    counts: collections.Counter[str | None] = collections.Counter({None: 0, **dict.fromkeys(known, 0)})
    counts.update(reasons)
    drawn, kept = counts.total(), counts.pop(None)
    return {
        "drawn": drawn,
        "kept": kept,
        "kept_fraction": kept / drawn if drawn else 0.0,
        **{f"why/{why}": count for why, count in counts.items()},
    }


class Language(NamedTuple):
    """A finite set of texts as an automaton over their bytes (`graph.Graph`), and the state before the first byte.

    `what` names such a text in errors.
    """

    graph: Graph
    start: int
    what: str = "text"


class Decodable(abc.ABC):
    """A filter that a model can be held to while it writes (`automaton.build`)."""

    @abc.abstractmethod
    def language(self) -> Language:
        """Texts that the filter keeps: all of them, or those that a model may write."""


@dataclasses.dataclass(frozen=True)
class Channel(Spec, abc.ABC):
    """What a teacher is asked to write."""

    @abc.abstractmethod
    def prompts(self, seed: int, n: int) -> list[str]:
        """`n` distinct prompts. A stream: the first k of n are those for k."""

    @abc.abstractmethod
    def filter(self) -> Filter:
        """What counts as data where the user says nothing else."""

    @abc.abstractmethod
    def before(self, question: str, seed: int) -> str:
        """The question with a line of this channel's kind in front, which differs from question to question."""
