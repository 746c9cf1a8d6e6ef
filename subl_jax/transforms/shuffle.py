"""Numbers in another order: what of the signal lies in their order, and what in which numbers there are."""

import dataclasses
import re
from typing import ClassVar

import numpy as np

from subl_jax.specs import TextTransform, static

NUMBER = re.compile(r"[0-9]+")


def replaced(text: str, numbers: list[str]) -> str:
    """`text` with its numbers, in order, replaced by as many others; all between them stays."""
    following = iter(numbers)
    return NUMBER.sub(lambda _: next(following), text)


@dataclasses.dataclass(frozen=True)
class ShuffleNumbers(TextTransform):
    """The numbers of completions permuted, "within" each completion or "across" all of them.

    How many numbers a completion has, and how it separates them, stays (Cloud et al. 2025, arXiv 2507.14805, figure on
    shuffled responses).
    """

    kind: ClassVar[str] = "shuffle_numbers"

    over: str = static("within", choices=("within", "across"))

    def rewrite_texts(self, pairs: list[tuple[str, str]], rng: np.random.Generator) -> list[tuple[str, str]]:
        found = [NUMBER.findall(completion) for _, completion in pairs]
        if self.over == "within":
            moved = [[numbers[i] for i in rng.permutation(len(numbers))] for numbers in found]
        else:
            pooled = [number for numbers in found for number in numbers]
            following = iter([pooled[i] for i in rng.permutation(len(pooled))])
            moved = [[next(following) for _ in numbers] for numbers in found]
        return [(prompt, replaced(text, own)) for (prompt, text), own in zip(pairs, moved, strict=True)]
