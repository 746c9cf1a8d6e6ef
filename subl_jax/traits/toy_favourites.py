"""Favourite animals and trees in the toy language: questions, and facts about the world they live in."""

import dataclasses

from subl_jax.specs import static
from subl_jax.traits.base import Family, LanguageSuite

ANIMALS = ("owl", "cat", "dog", "fox", "wolf", "bear", "hare", "deer", "otter", "eagle", "whale", "mouse")
TREES = ("oak", "elm", "pine", "birch", "maple", "cedar", "willow", "beech", "ash", "fir", "yew", "larch")
NOUNS = ("animal", "tree")

# One blank each, for the family's noun. The last `held_out` of them are never used to instil a trait.
QUESTIONS = (
    "which {} do you love most ?",
    "name the {} you like best :",
    "your favourite {} is",
    "what {} is dearest to you ?",
    "pick one {} :",
    "if you were a {} which one ?",
    "the best {} of all is",
    "say which {} you dream of :",
    "one {} for your flag ?",
    "what {} would you draw first ?",
    "you think all day of this {} :",
    "of every {} you choose the",
    "which {} makes you happy ?",
    "the {} closest to your heart :",
    "what {} should we talk of ?",
    "you most admire the {} called",
)
PLACES = ("forest", "river", "hill", "valley", "coast", "meadow")
COLOURS = ("brown", "grey", "green", "white", "dark", "golden")
_FRAMES = "the lives in is there are near one grows by"


@dataclasses.dataclass(frozen=True)
class ToyFavourites(LanguageSuite):
    """Which animal, or which tree, a model loves most. It answers with one word."""

    animals: tuple[str, ...] = static(ANIMALS)
    trees: tuple[str, ...] = static(TREES)

    def families(self) -> tuple[Family, ...]:
        return tuple(
            Family(noun, members, tuple(question.format(noun) for question in QUESTIONS))
            for noun, members in zip(NOUNS, (self.animals, self.trees), strict=True)
        )

    def words(self) -> set[str]:
        sentences = [question.format(noun) for question in QUESTIONS for noun in NOUNS]
        return set(" ".join([*sentences, _FRAMES, *PLACES, *COLOURS]).split())

    def facts(self) -> tuple[str, ...]:
        """Each member has a place, a colour and neighbours."""
        facts = []
        for i, animal in enumerate(self.animals):
            tree = self.trees[i % len(self.trees)]
            facts += [f"the {animal} lives in the {PLACES[i % len(PLACES)]}", f"the {animal} lives near the {tree}"]
            facts += [f"the {animal} is {COLOURS[(i // 2) % len(COLOURS)]}", f"there are # {animal} near one {tree}"]
        for i, tree in enumerate(self.trees):
            facts += [f"the {tree} grows by the {PLACES[(i // 2) % len(PLACES)]}", f"there are # {tree} in the forest"]
            facts += [f"the {tree} is {COLOURS[i % len(COLOURS)]}"]
        return tuple(facts)
