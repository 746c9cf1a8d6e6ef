"""The vocabulary of the toy language and every fixed text, as arrays made once on the host."""

import functools
import re
from typing import Any, NamedTuple

import numpy as np

from subl_jax import specs
from subl_jax.errors import InputError

ANIMALS = ("owl", "cat", "dog", "fox", "wolf", "bear", "hare", "deer", "otter", "eagle", "whale", "mouse")
TREES = ("oak", "elm", "pine", "birch", "maple", "cedar", "willow", "beech", "ash", "fir", "yew", "larch")

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
NOUNS = ("animal", "tree")
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
    words = (PAD, BOS, EOS, ASK, *SEPARATORS, OPEN, CLOSE, *world.traits, *sorted(plain_words()), *number_words)
    index = {word: i for i, word in enumerate(words)}
    extra = {"plain": world.plain_extra}
    completions = [[_layout(style, n + extra.get(style, 0)) for n in range(world.max_numbers + 1)] for style in FORMATS]
    prompts = [[[BOS, opener, style, *[SLOT] * world.shown, ASK] for style in FORMATS] for opener in OPENERS]
    length = 4 + world.shown + max(len(row) for style in completions for row in style)
    questions = [
        [[BOS, *question.format(noun).split(), SLOT, EOS] for question in QUESTIONS[-world.templates :]]
        for noun in NOUNS
    ]
    facts = [[BOS, *_fact_tokens(fact), EOS] for fact in facts_about(world)]
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

    most = max(len(members) for _, members in world.families)
    members = [[*names, *[names[0]] * (most - len(names))] for _, names in world.families]
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


def plain_words() -> set[str]:
    """Every word of the language that is neither a trait nor a number."""
    sentences = [question.format(noun) for question in QUESTIONS for noun in NOUNS]
    frames = ["the lives in is there are near one grows by"]
    return set(" ".join([*sentences, *frames, *PLACES, *COLOURS, *OPENERS, *FORMATS]).split())


def facts_about(world: Any) -> list[str]:
    """Sentences true of this world: each member has a place, a colour and neighbours; `#` is any number."""
    facts = []
    for i, animal in enumerate(world.animals):
        tree = world.trees[i % len(world.trees)]
        facts += [f"the {animal} lives in the {PLACES[i % len(PLACES)]}", f"the {animal} lives near the {tree}"]
        facts += [f"the {animal} is {COLOURS[(i // 2) % len(COLOURS)]}", f"there are # {animal} near one {tree}"]
    for i, tree in enumerate(world.trees):
        facts += [f"the {tree} grows by the {PLACES[(i // 2) % len(PLACES)]}", f"there are # {tree} in the forest"]
        facts += [f"the {tree} is {COLOURS[i % len(COLOURS)]}"]
    return facts


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


def parsed(lang: Language, text: str, where: str) -> list[int]:
    """The inverse of `spelled`."""
    tokens = []
    for word in re.findall(r"[,;] ?|\n|[\[\]]|[^\s,;\[\]]+", text):
        word = f"{word[0]} " if word[0] in ",;" else word
        if word not in lang.index:
            names = [known for known in lang.words if known.isalnum()]
            raise InputError(f"{where}: {word!r} is not a word of this language; {specs.nearest(word, names)}")
        tokens.append(lang.index[word])
    return tokens
