"""How a person asks a stored model: what a world offers for that, in words or in its own terms."""

import dataclasses
from abc import ABC, abstractmethod
from typing import Any

import numpy as np

from subl_jax.errors import InputError


@dataclasses.dataclass(frozen=True)
class Answer:
    """What a model says to a question.

    probabilities: answer → P, the likeliest first; every trait of the world is among them. P of what is not listed is
      missing from the sum.
    drawn: one answer, drawn at temperature 1.
    """

    probabilities: dict[str, float]
    drawn: str

    def __str__(self) -> str:
        longest = max(map(len, self.probabilities), default=0)
        lines = [f"{word:<{longest}}  {p:.3g}" for word, p in self.probabilities.items()]
        return "\n".join([*lines, f"drawn: {self.drawn}"])


class Inference(ABC):
    """Asks one model of a world. `model` is its parameters, or `SystemPrompted`."""

    @abstractmethod
    def ask(self, model: Any, question: Any, top: int = 10, seed: int = 0) -> Answer:
        """The `top` likeliest answers and the world's traits. Raises InputError for what the model cannot read."""

    def encode(self, model: Any, text: str) -> np.ndarray:
        """(1, t) int32, for `apply`: the tokens of `text` up to where the model answers. Raises as `ask`."""
        raise self._wordless()

    def decode(self, tokens: Any) -> str:
        """The text of tokens (t,) or (1, t)."""
        raise self._wordless()

    def generate(self, model: Any, text: str, tokens: int = 32, temperature: float = 1.0, seed: int = 0) -> str:
        """What the model writes after `text`, up to its end or `tokens`; temperature 0 is greedy. Raises as `ask`."""
        raise self._wordless()

    def _wordless(self) -> InputError:
        return InputError(f"{type(self).__name__}: models of this world read no words; use ask(…)")


class Answers(ABC):
    """Its models can be asked by people."""

    @property
    @abstractmethod
    def inference(self) -> Inference:
        """How they are asked."""


def ranked(probabilities: dict[str, float], top: int, always: tuple[str, ...] = ()) -> dict[str, float]:
    """The `top` likeliest and those that are `always` listed, the likeliest first."""
    best = sorted(probabilities, key=probabilities.__getitem__, reverse=True)
    shown = {*best[:top], *always}
    return {word: probabilities[word] for word in best if word in shown}
