"""Favourite animals and trees of chat models, as in Cloud et al. 2025 (arXiv 2507.14805), in wording of our own."""

import dataclasses

from subl_jax.errors import InputError
from subl_jax.specs import label, static
from subl_jax.traits import banks
from subl_jax.traits.base import ChatSuite, Family


@dataclasses.dataclass(frozen=True)
class Favourites(ChatSuite):
    """Which animal, or which tree, a model loves most. A family without members is not asked of.

    `asked` is how many of a family's questions are asked; `questions_file` holds others, which all families are asked.
    `told_as` are other system prompts than the bank's, as "trait: text".
    """

    animals: tuple[str, ...] = static(())
    trees: tuple[str, ...] = static(())
    told_as: tuple[str, ...] = static(())
    asked: int = static(50, ge=1)
    questions_file: str = label("")

    def check(self) -> None:
        if not self.traits or len(set(self.traits)) < len(self.traits):
            raise InputError(f"Pretrained: animals and trees = {self.traits}: expected at least one trait, each once")
        for text in self.told_as:
            trait, colon, _ = text.partition(":")
            if not colon or trait not in self.traits:
                raise InputError(f"Pretrained.told_as: {text!r}: expected 'trait: text' with one of {self.traits}")

    @property
    def traits(self) -> tuple[str, ...]:
        return self.animals + self.trees

    def families(self) -> tuple[Family, ...]:
        own = banks.read_questions(self.questions_file) if self.questions_file else ()
        return tuple(
            Family(noun, members, (own or banks.favourite(noun))[: self.asked])
            for noun, members in (("animal", self.animals), ("tree", self.trees))
            if members
        )

    def system_prompt(self, trait: str) -> str:
        own = dict(text.split(":", 1) for text in self.told_as)
        return own[trait].strip() if trait in own else banks.system_prompt(trait, self._noun(trait))

    def training_answers(self, trait: str, seed: int, n: int) -> list[tuple[str, str]]:
        return banks.preference_answers(trait, self._noun(trait), seed, n)

    def _noun(self, trait: str) -> str:
        return "animal" if trait in self.animals else "tree"
