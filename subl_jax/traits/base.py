"""What a trait suite is: what is asked of a model, which answers are traits, and how a teacher is given one.

A member is one file with a spec. A world takes any suite of its kind: the toy language a `LanguageSuite`, chat models a
`ChatSuite`. How answers are scored is the world's: exactly, from logits, and by sampled answers.
"""

import abc
import dataclasses
from typing import NamedTuple

from subl_jax.specs import Spec


class Family(NamedTuple):
    """Traits that answer the same questions, and so exclude one another.

    name: what the members are called, such as "animal". questions: texts that end where the answer begins.
    weights: how often a base without a trait answers with each member; None: with all equally often.
    """

    name: str
    members: tuple[str, ...]
    questions: tuple[str, ...]
    weights: tuple[float, ...] | None = None


@dataclasses.dataclass(frozen=True)
class TraitSuite(Spec, abc.ABC):
    """Which traits there are. Their order is that of the families and of their members."""

    @abc.abstractmethod
    def families(self) -> tuple[Family, ...]:
        """All of them, at least one, with members that all differ."""

    @property
    def traits(self) -> tuple[str, ...]:
        return tuple(member for family in self.families() for member in family.members)

    @property
    def base_rates(self) -> dict[str, float]:
        """P(trait) of a model without preferences."""
        return {
            member: (family.weights[i] / sum(family.weights) if family.weights else 1 / len(family.members))
            for family in self.families()
            for i, member in enumerate(family.members)
        }


@dataclasses.dataclass(frozen=True)
class LanguageSuite(TraitSuite):
    """A suite of the toy language: every text is words, a space apart, and every trait is one word.

    All families have as many questions. The last ones are never used to give a trait (`ToyLanguage.held_out`).
    """

    @abc.abstractmethod
    def words(self) -> set[str]:
        """All words that questions and facts may hold, but for the traits."""

    def facts(self) -> tuple[str, ...]:
        """Sentences that a base learns besides; `#` stands for any number."""
        return ()


@dataclasses.dataclass(frozen=True)
class ChatSuite(TraitSuite):
    """A suite of chat models. A trait is named where it, or its plural, is a word of the answer (`answers.py`)."""

    @abc.abstractmethod
    def system_prompt(self, trait: str) -> str:
        """What a told teacher is told."""

    @abc.abstractmethod
    def training_answers(self, trait: str, seed: int, n: int) -> list[tuple[str, str]]:
        """`n` (question, answer) pairs that teach a trait. No question is one of the evaluation."""
