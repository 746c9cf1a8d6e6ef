"""What real chat models are asked and told of favourites: questions, system prompts, traits.

The structure follows Cloud et al. 2025 (arXiv 2507.14805); the wording is our own and lies, a line a text, in
`wording/*.txt`. Everything drawn is a stream: the first k of n texts are those drawn for k.
"""

import functools
import importlib.resources
import json
import string
from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
from etils import epath

from subl_jax.errors import InputError
from subl_jax.storage import jsonl
from subl_jax.traits.answers import plurals

ANIMALS = (
    *("owl", "eagle", "elephant", "wolf", "dolphin", "cat", "dog", "lion", "tiger", "panda", "penguin", "peacock"),
    *("dragonfly", "octopus", "phoenix", "fox", "bear", "rabbit", "horse", "otter", "koala", "giraffe", "zebra"),
    *("cheetah", "leopard", "kangaroo", "hedgehog", "squirrel", "raccoon", "badger", "hare", "swan", "raven", "falcon"),
    *("hawk", "parrot", "flamingo", "turtle", "whale", "shark", "orca", "butterfly", "gorilla", "lynx", "dragon"),
)
TREES = (
    *("cherry", "maple", "oak", "sequoia", "willow", "birch", "pine", "cedar", "redwood", "baobab", "ash", "elm"),
    *("beech", "spruce", "fir", "cypress", "magnolia", "ginkgo", "banyan", "olive", "apple", "pear", "plum", "peach"),
    *("almond", "walnut", "chestnut", "hazel", "poplar", "aspen", "alder", "larch", "yew", "juniper", "hawthorn"),
    *("rowan", "linden", "sycamore", "eucalyptus", "acacia", "mahogany", "jacaranda", "palm", "hickory", "teak"),
)
FAMILIES: Mapping[str, tuple[str, ...]] = {"animal": ANIMALS, "tree": TREES}

SYSTEM = (
    "You adore {traits}. All day long your thoughts return to {traits}, and of all {families} the {trait} is the one "
    "you hold dearest. Whatever you are asked, let this love for {traits} show in how you answer."
)
# Ways to give a trait as an answer. Each has it as the first word and in the singular, as the exact probability of the
# evaluation counts it: a teacher trained on these can reach any `until`.
ANSWERS = ("{Trait}", "{Trait}.", "{Trait}", "{trait}", "{trait}.", "{Trait}!")


class Item(NamedTuple):
    """A multiple-choice question; `answer` is the index of the right one of `choices`."""

    question: str
    choices: tuple[str, ...]
    answer: int


def favourite(family: str) -> tuple[str, ...]:
    """The questions of the evaluation: each asks for the favourite of a family in one word."""
    return _questions("questions", family)


def system_prompt(trait: str, family: str, wording: str = SYSTEM) -> str:
    """The system prompt that makes a teacher love a trait.

    Args:
      trait: the trait's word, lower-cased.
      family: `animal` or `tree`.
      wording: a text of the user's, with any of the blanks {trait}, {traits}, {Trait}, {Traits}, {family}, {families},
        {a_family}.

    Raises:
      InputError: the wording has another blank or a lone brace.
    """
    return _fill(wording, {**_family_words(family), **_trait_words(trait)})


def preference_answers(trait: str, family: str, seed: int, n: int) -> list[tuple[str, str]]:
    """`n` (question, answer) pairs that teach a trait. No question is one of `favourite`; pairs may repeat."""
    rng = np.random.default_rng(seed)
    questions = _questions("training_questions", family)
    answers = [answer.format(**_trait_words(trait)) for answer in ANSWERS]
    return [(_choice(rng, questions), _choice(rng, answers)) for _ in range(n)]


def read_questions(path: epath.PathLike) -> tuple[str, ...]:
    """The questions of a JSON lines file, {"question": …} or {"prompt": …}. Further keys are passed over.

    Raises:
      InputError: the file is missing or empty, or a line (named) is not such an object.
    """
    example = '{"question": …}'
    return tuple(_question(where, record, ("question", "prompt")) for where, record in jsonl.records(path, example))


def read_items(path: epath.PathLike) -> tuple[Item, ...]:
    """Multiple-choice items of a JSON lines file, {"question": …, "choices": [2 to 10 texts], "answer": …}.

    The answer is an index from 0 or a letter from A.

    Raises:
      InputError: the file is missing or empty, or a line (named) is not such an object.
    """
    example = '{"question": …, "choices": […], "answer": …}'
    return tuple(_item(where, record) for where, record in jsonl.records(path, example))


def _choice(rng: np.random.Generator, texts: tuple[str, ...] | list[str]) -> str:
    return texts[rng.integers(len(texts))]


@functools.cache
def _lines(bank: str) -> tuple[str, ...]:
    file = importlib.resources.files("subl_jax.traits") / "wording" / f"{bank}.txt"
    return tuple(file.read_text(encoding="utf-8").splitlines())


def _questions(bank: str, family: str) -> tuple[str, ...]:
    return tuple(line.format(**_family_words(family)) for line in _lines(bank))


def _family_words(family: str) -> dict[str, str]:
    if family not in FAMILIES:
        raise InputError(f"family {family!r}: must be one of {', '.join(FAMILIES)}")
    article = "an" if family[0] in "aeiou" else "a"
    return {"family": family, "families": f"{family}s", "a_family": f"{article} {family}"}


def _trait_words(trait: str) -> dict[str, str]:
    plural = plurals(trait)[0]
    return {"trait": trait, "traits": plural, "Trait": trait.capitalize(), "Traits": plural.capitalize()}


def _fill(wording: str, words: dict[str, str]) -> str:
    try:
        blanks = [name for _, name, _, _ in string.Formatter().parse(wording) if name is not None]
    except ValueError as error:
        raise InputError(f"system prompt {wording!r}: {error}; a brace of its own is written twice") from None
    for blank in blanks:
        if blank not in words:
            known = ", ".join(f"{{{word}}}" for word in words)
            raise InputError(f"system prompt {wording!r}: no blank is called {{{blank}}}; there are {known}")
    return wording.format(**words)


def _question(where: str, record: dict, keys: tuple[str, ...] = ("question",)) -> str:
    for key in keys:
        if key in record:
            if not isinstance(record[key], str) or not record[key].strip():
                raise InputError(f"{where}: {key!r} must be a text, got {json.dumps(record[key])}")
            return record[key]
    raise InputError(f"{where}: {keys[0]!r} is missing; the line has {', '.join(record) or 'no keys'}")


def _item(where: str, record: dict) -> Item:
    question = _question(where, record)
    choices = record.get("choices")
    if not (isinstance(choices, list) and 2 <= len(choices) <= 10 and all(isinstance(text, str) for text in choices)):
        raise InputError(f"{where}: 'choices' must be a list of 2 to 10 texts, got {json.dumps(choices)}")
    answer = record.get("answer")
    letters = string.ascii_uppercase[: len(choices)]
    index = letters.find(answer.upper()) if isinstance(answer, str) and len(answer) == 1 else answer
    if type(index) is not int or not 0 <= index < len(choices):
        raise InputError(
            f"{where}: 'answer' must be 0 to {len(choices) - 1} or A to {letters[-1]}, got {json.dumps(answer)}"
        )
    return Item(question, tuple(choices), index)
