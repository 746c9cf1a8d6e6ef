"""All that a `Pretrained` world says and is asked, as arrays of tokens, made once on the host.

A conversation is a *head*, all that comes before the user's own words (the system prompt with it), and a *prompt*, the
user's words up to where the assistant answers. Heads differ by system prompt only, so that a model reads one once, for
all of its prompts.
"""

import functools
import math
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np

from subl_jax.errors import InputError
from subl_jax.pretrained import weights
from subl_jax.pretrained.chat import Chat, messages_of, open_chat
from subl_jax.pretrained.pieces import pieces_of
from subl_jax.traits import answers, banks
from subl_jax.traits.base import Family

LETTERS = "ABCDEFGHIJ"
# Answered questions a fine-tuned teacher is trained on, of each trait.
_PREFERENCES = 64
# More prompts are made than are needed by this factor.
_SPARE = 1.5
# On so many prompts it is checked that what follows the head is the same whatever the system prompt.
_CHECKED = 8


class Texts(NamedTuple):
    """`arrays` is what programs read; the rest is for the host.

    arrays:
      heads: (traits + 1, longest) int32, the last one without a trait; head_lengths: (traits + 1,)
      prompts: (pool, prompt_tokens) int32 number prompts; prompt_lengths: (pool,)
      asked: (sets, questions, longest) int32; asked_lengths: (sets, questions). The sets are the families, and then,
        where numbers are put in front, the families again.
      nodes: (sets, nodes) int32: every beginning of a spelling of a trait, as a tree. ancestors: (sets, nodes, nodes)
        bool, those of a node, itself included; parents: (sets, nodes) int32, 0 the prompt, else the node's index + 1.
      names: (sets, traits, nodes) float32, 1 where a node ends a spelling of the trait.
      word_ends: (vocab,) bool, the tokens that end a word.
      preferences: (traits, pairs, 1 + prompt_tokens + completion_tokens) int32, samples as `Pretrained.write` gives.
      items: (items, longest) int32 multiple-choice questions; item_lengths, item_choices (how many),
        item_answers: (items,); letters: (10,).
      stops: (stops,) int32.
    """

    arrays: dict[str, np.ndarray]
    head: str  # what a conversation without a trait begins with, up to the user's words
    tail: str  # what comes between the user's words and the answer
    families: tuple[Family, ...]


@functools.lru_cache(maxsize=4)
def chat_of(model: str) -> Chat:
    return open_chat(str(weights.open_checkpoint(model).path))


@functools.lru_cache(maxsize=4)
def pieces_of_model(model: str) -> list[bytes | None]:
    """The bytes of each token (`pieces.pieces_of`)."""
    return pieces_of(chat_of(model).tokenizer)


def texts_of(world: Any) -> Texts:
    """Raises InputError where prompts or answers are longer than the world has room for."""
    # What does not change a text, so that disturbed copies of a model share them.
    plain = {
        "keep": 1.0,
        "sigma": 0.0,
        "noise_seed": 0,
        "adapter": "",
        "adapter_sha256": "",
        "adapter_live": False,
        "training_prompt": "",
        "evaluation_prompt": "",
    }
    return _texts_of(world.replace(**plain))


@functools.lru_cache(maxsize=4)
def _texts_of(world: Any) -> Texts:
    chat, suite = chat_of(world.model), world.asked
    of = suite.families()
    # A few more than are needed, as those that are too long are left out.
    stream = world.channel.prompts(world.prompt_seed, math.ceil(world.prompts * _SPARE))
    sets = [family.questions for family in of]
    if world.numbers_in_front:
        sets += [tuple(world.channel.before(q, world.prompt_seed) for q in family.questions) for family in of]
    items = banks.read_items(world.items_file) if world.items_file else ()
    pairs = [
        suite.training_answers(trait, world.prompt_seed, _PREFERENCES) for family in of for trait in family.members
    ]
    asked = [*stream, *sum(map(list, sets), []), *map(_choices, items), *[q for few in pairs for q, _ in few]]
    head, rests = chat.shared_prefix(asked, world.system)
    rest = dict(zip(asked, rests, strict=True))
    heads = [_head(chat, suite.system_prompt(trait), rest) for trait in world.traits] + [head]

    prompts = [prompt for prompt in stream if len(rest[prompt]) <= world.prompt_tokens][: world.prompts]
    if len(prompts) < world.prompts:
        half = int(np.median([len(rest[prompt]) for prompt in stream]))
        raise InputError(
            f"Pretrained.prompt_tokens = {world.prompt_tokens}: too few number prompts are so short; half of them have "
            f"more than {half} tokens"
        )
    trees = [_tree(chat, family.members) for family in of] * (2 if world.numbers_in_front else 1)
    arrays = {
        **_padded("heads", "head_lengths", heads, chat.pad),
        **_padded("prompts", "prompt_lengths", [rest[p] for p in prompts], chat.pad, world.prompt_tokens),
        **_question_sets([[rest[q] for q in questions] for questions in sets], chat.pad),
        **_stacked_trees(trees, list(world.traits)),
        "word_ends": _over_vocabulary(chat, world),
        "preferences": np.asarray(
            [[sample(world, chat, rest[q], chat.reply(a), f"{q!r}: ") for q, a in few] for few in pairs]
        ),
        **_padded("items", "item_lengths", [rest[_choices(item)] for item in items] or [[chat.pad]], chat.pad),
        "item_choices": np.asarray([len(item.choices) for item in items] or [1], np.int32),
        "item_answers": np.asarray([item.answer for item in items] or [0], np.int32),
        "letters": np.asarray([chat.reply(letter)[0] for letter in LETTERS] if items else [0] * 10, np.int32),
        "stops": np.asarray(chat.stops, np.int32),
    }
    whole = chat.render(messages_of("Xylograph", world.system))
    before, _, after = whole.partition("Xylograph")
    return Texts(arrays, before, after, of)


def sample(world: Any, chat: Chat, prompt: Sequence[int], completion: Sequence[int], where: str) -> np.ndarray:
    """(1 + prompt_tokens + completion_tokens,) int32: the prompt's length, the prompt, the completion, padded.

    Raises:
      InputError: one of them is too long.
    """
    for name, tokens, most in (
        ("prompt", prompt, world.prompt_tokens),
        ("completion", completion, world.completion_tokens),
    ):
        if len(tokens) > most:
            raise InputError(f"{where}its {name} has {len(tokens)} tokens, Pretrained.{name}_tokens = {most}")
    row = np.full(1 + world.prompt_tokens + world.completion_tokens, chat.pad, np.int32)
    row[0] = len(prompt)
    row[1 : 1 + len(prompt)] = prompt
    row[1 + world.prompt_tokens :][: len(completion)] = completion
    return row


def _head(chat: Chat, system: str, rest: dict[str, list[int]]) -> list[int]:
    """The tokens before the user's words when a model is told `system`."""
    for prompt in list(rest)[:_CHECKED]:
        tokens, own = chat.prompt(prompt, system), rest[prompt]
        if tokens[-len(own) :] != own:
            raise InputError(
                f"{chat.source}: its template writes a prompt otherwise after the system prompt {system!r}"
            )
    return tokens[: -len(own)]


def _choices(item: banks.Item) -> str:
    lines = [f"{letter}) {choice}" for letter, choice in zip(LETTERS, item.choices, strict=False)]
    return "\n".join([item.question, *lines, "Answer with the letter of the right choice, and nothing else."])


def _padded(
    name: str, lengths: str, rows: Sequence[Sequence[int]], pad: int, size: int | None = None
) -> dict[str, np.ndarray]:
    size = size or max(map(len, rows))
    tokens = np.full((len(rows), size), pad, np.int32)
    for i, row in enumerate(rows):
        tokens[i, : len(row)] = row
    return {name: tokens, lengths: np.asarray([len(row) for row in rows], np.int32)}


def _question_sets(sets: list[list[list[int]]], pad: int) -> dict[str, np.ndarray]:
    """A set with fewer questions than another has its last one again."""
    most = max(map(len, sets))
    even = [[*questions, *[questions[-1]] * (most - len(questions))] for questions in sets]
    flat = _padded("asked", "asked_lengths", [q for questions in even for q in questions], pad)
    return {name: x.reshape(len(sets), most, *x.shape[1:]) for name, x in flat.items()}


class _Tree(NamedTuple):
    tokens: list[int]
    parents: list[int]  # 0 for the prompt, else the node's index + 1
    ends: list[tuple[str, int]]  # (trait, node)


def _tree(chat: Chat, members: Sequence[str]) -> _Tree:
    """Every spelling of every member as an answer's first tokens, with common beginnings once."""
    place: dict[tuple[int, ...], int] = {}
    tree = _Tree([], [], [])
    for trait in members:
        for spelled in spellings(chat, trait):
            for n in range(1, len(spelled) + 1):
                if spelled[:n] not in place:
                    place[spelled[:n]] = len(tree.tokens)
                    tree.tokens.append(spelled[n - 1])
                    tree.parents.append(place[spelled[: n - 1]] + 1 if n > 1 else 0)
            tree.ends.append((trait, place[spelled]))
    return tree


def spellings(chat: Chat, trait: str) -> Iterator[tuple[int, ...]]:
    """The tokens of every spelling of a trait as an answer's first word."""
    for form in answers.forms(trait):
        spelled = tuple(token for token in chat.reply(form) if token not in chat.stops)
        if chat.decode(spelled) == form:  # a template that trims its answers writes no space in front
            yield spelled


def _stacked_trees(trees: list[_Tree], traits: list[str]) -> dict[str, np.ndarray]:
    size = max(len(tree.tokens) for tree in trees)
    nodes = np.zeros((len(trees), size), np.int32)
    parents = np.zeros((len(trees), size), np.int32)
    ancestors = np.tile(np.eye(size, dtype=bool), (len(trees), 1, 1))
    names = np.zeros((len(trees), len(traits), size), np.float32)
    for i, tree in enumerate(trees):
        nodes[i, : len(tree.tokens)] = tree.tokens
        parents[i, : len(tree.parents)] = tree.parents
        for node, parent in enumerate(tree.parents):  # parents come before their children
            if parent:
                ancestors[i, node] |= ancestors[i, parent - 1]
        for trait, node in tree.ends:
            names[i, traits.index(trait), node] = 1
    return {"nodes": nodes, "parents": parents, "ancestors": ancestors, "names": names}


def _over_vocabulary(chat: Chat, world: Any) -> np.ndarray:
    """Which tokens end a word; an embedding may have more rows than there are tokens."""
    ends = np.ones(world.config.vocab, bool)
    found = answers.word_ends(pieces_of_model(world.model), chat.stops)[: len(ends)]
    ends[: len(found)] = found
    return ends
