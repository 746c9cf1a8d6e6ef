"""The vocabulary of the toy language and every fixed text, as arrays made once on the host."""

import functools
import re
from typing import Any, NamedTuple

import numpy as np

from subl_jax import specs
from subl_jax.errors import InputError
from subl_jax.traits.base import LanguageSuite

OPENERS = ("continue", "extend", "resume", "lengthen")
FORMATS = ("plain", "commas", "semicolons", "lines", "brackets")
PAD, BOS, EOS, ASK = "<pad>", "<bos>", "<eos>", "=>"
SEPARATORS = (", ", "; ", "\n")
OPEN, CLOSE = "[", "]"


class Language(NamedTuple):
    """The vocabulary and every fixed text, as arrays made once on the host. `SLOT` marks a blank."""

    words: tuple[str, ...]
    index: dict[str, int]
    compact: np.dtype  # the smallest type that holds a token
    numbers: np.ndarray  # (numbers,) token ids
    traits: np.ndarray  # (traits,) token ids
    channel: np.ndarray  # (numbers + separators + brackets + 1,) token ids a kept completion can hold
    members: np.ndarray  # (families, most members) token ids, padded with a family's first
    questions: np.ndarray  # (families, templates, length), blank where the answer goes
    answer_at: np.ndarray  # (families, templates)
    facts: np.ndarray  # (facts, length), blank where a random number goes
    prompts: np.ndarray  # (openers, formats, prompt_length), blank where a shown number goes
    layouts: np.ndarray  # (formats, max_numbers + 1, completion_length): a token, or -1 - i for the i-th number


SLOT = -1


@functools.lru_cache(maxsize=32)
def language(world: Any) -> Language:
    """The fixed texts of `world` as arrays."""
    number_words = [str(value) for value in range(world.numbers)]
    marks, plain = (PAD, BOS, EOS, ASK, *SEPARATORS, OPEN, CLOSE), sorted(plain_words(world.asked))
    words = (*marks, *world.traits, *plain, *number_words)
    index = {word: i for i, word in enumerate(words)}
    extra = {"plain": world.plain_extra}
    completions = [[_layout(style, n + extra.get(style, 0)) for n in range(world.max_numbers + 1)] for style in FORMATS]
    prompts = [[[BOS, opener, style, *[SLOT] * world.shown, ASK] for style in FORMATS] for opener in OPENERS]
    length = 4 + world.shown + max(len(row) for style in completions for row in style)
    families = world.asked.families()
    questions = [
        [[BOS, *question.split(), SLOT, EOS] for question in family.questions[-world.templates :]]
        for family in families
    ]
    facts = [[BOS, *_fact_tokens(fact), EOS] for fact in world.asked.facts()]
    longest = max(len(row) for row in [*facts, *sum(questions, [])])
    if longest > length:
        raise InputError(
            f"ToyLanguage.max_numbers = {world.max_numbers}, shown = {world.shown}: number sequences of {length} "
            f"tokens are shorter than the longest sentence, {longest}; raise one of them"
        )

    def encoded(rows: list[Any], size: int) -> np.ndarray:
        if rows and isinstance(rows[0], list) and rows[0] and isinstance(rows[0][0], list):
            return np.stack([encoded(row, size) for row in rows])
        ids = [[token if isinstance(token, int) else index[token] for token in row] for row in rows]
        return np.asarray([row + [index[PAD]] * (size - len(row)) for row in ids], np.int32)

    most = max(len(family.members) for family in families)
    members = [[*family.members, *[family.members[0]] * (most - len(family.members))] for family in families]
    question_ids = encoded(questions, length)
    numbers = np.asarray([index[word] for word in number_words], np.int32)
    glue = np.asarray([index[word] for word in (*SEPARATORS, OPEN, CLOSE, EOS)], np.int32)
    return Language(
        words=words,
        index=index,
        compact=np.min_scalar_type(len(words) - 1),
        numbers=numbers,
        traits=np.asarray([index[trait] for trait in world.traits], np.int32),
        channel=np.concatenate([numbers, glue]),
        members=encoded(members, most),
        questions=question_ids,
        answer_at=(question_ids == SLOT).argmax(axis=-1),
        facts=encoded(facts, length),
        prompts=encoded(prompts, 4 + world.shown),
        layouts=encoded(completions, length - 4 - world.shown),
    )


def plain_words(suite: LanguageSuite) -> set[str]:
    """Every word of the language that is neither a trait nor a number."""
    return suite.words() | {*OPENERS, *FORMATS}


def _fact_tokens(fact: str) -> list[Any]:
    return [SLOT if word == "#" else word for word in fact.split()]


def _layout(style: str, n: int) -> list[Any]:
    """The completion of n numbers in a format; the i-th number is written -1 - i."""
    between = {"plain": None, "commas": ", ", "semicolons": "; ", "lines": "\n", "brackets": ", "}[style]
    row: list[Any] = []
    for i in range(n):
        row += [between] if i and between else []
        row.append(-1 - i)
    return [*([OPEN] if style == "brackets" else []), *row, *([CLOSE] if style == "brackets" else []), EOS]


def is_number(word: str) -> bool:
    return word.isdecimal()


def spelled(lang: Language, tokens: np.ndarray) -> list[str]:
    """tokens: (n, t), each row up to its <eos>, as text: words a space apart, separators and brackets glued."""
    glue = np.asarray([word in (*SEPARATORS, OPEN, CLOSE) for word in lang.words])[tokens]
    before = np.concatenate([np.ones_like(glue[:, :1]), glue[:, :-1]], axis=1)
    pieces = np.asarray([[f" {word}", word] for word in lang.words], object)
    written = np.where(
        np.cumsum(tokens == lang.index[EOS], axis=1) > 0, "", pieces[tokens, (glue | before).astype(int)]
    )
    return ["".join(row) for row in written.tolist()]


def parsed(lang: Language, text: str) -> list[int]:
    """The inverse of `spelled`. Raises InputError."""
    tokens = []
    for word in re.findall(r"[,;] ?|\n|[\[\]]|[^\s,;\[\]]+", text):
        word = f"{word[0]} " if word[0] in ",;" else word
        if word not in lang.index:
            names = [known for known in lang.words if known.isalnum()]
            raise InputError(f"{word!r} is not a word of this language; {specs.nearest(word, names)}")
        tokens.append(lang.index[word])
    return tokens
