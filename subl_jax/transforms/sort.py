"""Numbers in ascending order: a canonical form, in which a teacher's order leaves no trace."""

import dataclasses
from typing import ClassVar

import numpy as np

from subl_jax.specs import TextTransform
from subl_jax.transforms.shuffle import NUMBER, replaced


@dataclasses.dataclass(frozen=True)
class SortNumbers(TextTransform):
    """The numbers of each completion in ascending order; which numbers there are, and separators, stay."""

    kind: ClassVar[str] = "sort_numbers"

    def rewrite_texts(self, pairs: list[tuple[str, str]], rng: np.random.Generator) -> list[tuple[str, str]]:
        return [(prompt, replaced(text, sorted(NUMBER.findall(text), key=int))) for prompt, text in pairs]
