"""All that a `Pretrained` world says and is asked, as arrays of tokens, made once on the host.

A conversation is a *head*, all that comes before the user's own words (the system prompt with it), and a *prompt*, the
user's words up to where the assistant answers. A model reads a head once, for all of its prompts.

What follows the head can depend on the system prompt: where that is written into the user's turn (Llama 2, Mistral),
SentencePiece cuts the first word otherwise than without it. So prompts have *forms*, one for all system prompts that
they are written alike after; form 0 is that of no trait. Most templates have this one only.
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
# On so many prompts, of different first tokens, it is checked in which form they follow a system prompt.
_CHECKED = 16
# The arrays that have one more axis in `forms`, in front.
_FORMED = ("prompts", "prompt_lengths", "asked", "asked_lengths", "items", "item_lengths")


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
      preferences: (traits, pairs, columns) int32, samples as `Pretrained.write` gives.
      items: (items, longest) int32 multiple-choice questions; item_lengths, item_choices (how many),
        item_answers: (items,); letters: (10,).
      stops: (stops,) int32.
      forms: only where there are several: prompts, asked, items and their lengths, each with an axis of forms in front;
        head_forms: (traits + 1,) int32, which of them follows a head.
    """

    arrays: dict[str, Any]
    head: str  # what a conversation without a trait begins with, up to the user's words
    tail: str  # what comes between the user's words and the answer
    decoded: tuple[str, str]  # head and tail as the tokenizer decodes them
    families: tuple[Family, ...]
    starts: tuple["Start", ...]  # of each form


class Start(NamedTuple):
    """A form of prompts: a system prompt that they follow so, and the tokens before them."""

    system: str | None
    head: list[int]


@functools.lru_cache(maxsize=4)
def chat_of(model: str) -> Chat:
    checkpoint = weights.open_checkpoint(model)
    return open_chat(str(checkpoint.path)).within(checkpoint.config.vocab)


@functools.lru_cache(maxsize=4)
def pieces_of_model(model: str) -> list[bytes | None]:
    """The bytes of each token that the embedding has a row for (`pieces.pieces_of`)."""
    return pieces_of(chat_of(model).tokenizer)[: weights.open_checkpoint(model).config.vocab]


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
    starts, forms = [Start(world.system, head)], [dict(zip(asked, rests, strict=True))]
    told = [_told(chat, suite.system_prompt(trait), starts, forms) for trait in world.traits] + [(head, 0)]

    prompts = [prompt for prompt in stream if max(len(rest[prompt]) for rest in forms) <= world.prompt_tokens]
    prompts = prompts[: world.prompts]
    if len(prompts) < world.prompts:
        half = int(np.median([max(len(rest[prompt]) for rest in forms) for prompt in stream]))
        raise InputError(
            f"Pretrained.prompt_tokens = {world.prompt_tokens}: too few number prompts are so short; half of them have "
            f"more than {half} tokens"
        )
    trees = [_tree(chat, world.model, family.members) for family in of] * (2 if world.numbers_in_front else 1)
    formed = [_in_form(world, chat, rest, prompts, sets, items) for rest in forms]
    arrays = {
        **_padded("heads", "head_lengths", [tokens for tokens, _ in told], chat.pad),
        **formed[0],
        **_stacked_trees(trees, list(world.traits)),
        "word_ends": _over_vocabulary(chat, world),
        "preferences": np.asarray(
            [
                [sample(world, chat, [rest[q] for rest in forms], chat.reply(a), f"{q!r}: ") for q, a in few]
                for few in pairs
            ]
        ),
        "item_choices": np.asarray([len(item.choices) for item in items] or [1], np.int32),
        "item_answers": np.asarray([item.answer for item in items] or [0], np.int32),
        "letters": np.asarray([chat.reply(letter)[0] for letter in LETTERS] if items else [0] * 10, np.int32),
        "stops": np.asarray(chat.stops, np.int32),
    }
    if len(forms) > 1:
        arrays["forms"] = {name: _stacked([each[name] for each in formed], chat.pad) for name in _FORMED}
        arrays["head_forms"] = np.asarray([form for _, form in told], np.int32)
        arrays |= {name: stacked[0] for name, stacked in arrays["forms"].items()}
    for name in ("heads", "prompts", "asked", "nodes", "preferences", "items"):
        check_rows(world, chat, arrays[name], "what is said holds")
    whole = chat.render(messages_of("Xylograph", world.system))
    before, _, after = whole.partition("Xylograph")
    decoded = _decoded(chat, [*head, *forms[0][prompts[0]]], prompts[0]) or (before, after)
    return Texts(arrays, before, after, decoded, of, tuple(starts))


def check_rows(world: Any, chat: Chat, tokens: np.ndarray, what: str) -> None:
    """Raises InputError where a token has no row in the model's embedding."""
    rows = world.config.vocab
    if tokens.max(initial=0) >= rows:
        token = int(tokens[tokens >= rows][0])
        raise InputError(
            f"{what} the token {chat.tokenizer.id_to_token(token)!r} ({token}), and the embedding of {chat.source} has "
            f"{rows} rows: the tokenizer is not this model's, or tokens were added to it and not to the model"
        )


def _in_form(
    world: Any, chat: Chat, rest: dict[str, list[int]], prompts: Sequence[str], sets: list, items: Sequence[banks.Item]
) -> dict[str, np.ndarray]:
    return {
        **_padded("prompts", "prompt_lengths", [rest[p] for p in prompts], chat.pad, world.prompt_tokens),
        **_question_sets([[rest[q] for q in questions] for questions in sets], chat.pad),
        **_padded("items", "item_lengths", [rest[_choices(item)] for item in items] or [[chat.pad]], chat.pad),
    }


def _stacked(arrays: Sequence[np.ndarray], pad: int) -> np.ndarray:
    """Arrays that differ in their last axis only, filled up to the longest."""
    longest = max(x.shape[-1] for x in arrays)
    return np.stack(
        [np.pad(x, [*[(0, 0)] * (x.ndim - 1), (0, longest - x.shape[-1])], constant_values=pad) for x in arrays]
    )


def _decoded(chat: Chat, conversation: list[int], user: str) -> tuple[str, str] | None:
    """What the tokenizer makes of all before, and all behind, the user's words."""
    before, found, after = chat.tokenizer.decode(conversation, skip_special_tokens=False).partition(user.strip())
    return (before, after) if found else None


def sample(
    world: Any, chat: Chat, prompts: Sequence[Sequence[int]], completion: Sequence[int], where: str = ""
) -> np.ndarray:
    """(columns,) int32: the prompt's length, the prompt, the completion, padded; then the prompt in its other forms.

    prompts: in each of its forms. columns: (1 + prompt_tokens) * forms + completion_tokens.

    Raises:
      InputError: one of them is too long.
    """
    rows = [np.concatenate([[len(p)], _filled(world, chat, p, "prompt", where)]) for p in prompts]
    rows.insert(1, _filled(world, chat, completion, "completion", where))
    return np.concatenate(rows).astype(np.int32)


def _filled(world: Any, chat: Chat, tokens: Sequence[int], name: str, where: str) -> np.ndarray:
    most = {"prompt": world.prompt_tokens, "completion": world.completion_tokens}[name]
    if len(tokens) > most:
        raise InputError(f"{where}its {name} has {len(tokens)} tokens, Pretrained.{name}_tokens = {most}")
    return np.asarray([*tokens, *[chat.pad] * (most - len(tokens))], np.int32)


def _told(chat: Chat, system: str, starts: list[Start], forms: list[dict[str, list[int]]]) -> tuple[list[int], int]:
    """The tokens before the user's words when a model is told `system`, and the form of these; a new one is added."""
    opening = {}
    for prompt, tokens in forms[0].items():
        opening.setdefault(tokens[0], prompt)
    few = {prompt: chat.prompt(prompt, system) for prompt in list(opening.values())[:_CHECKED]}
    for i, rest in enumerate(forms):
        heads = {tuple(tokens[: -len(rest[p])]) for p, tokens in few.items() if tokens[-len(rest[p]) :] == rest[p]}
        if len(heads) == 1 and all(tokens[-len(rest[p]) :] == rest[p] for p, tokens in few.items()):
            return list(heads.pop()), i
    head, rests = chat.shared_prefix(list(forms[0]), system)
    starts.append(Start(system, head))
    forms.append(dict(zip(forms[0], rests, strict=True)))
    return head, len(forms) - 1


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


def _tree(chat: Chat, model: str, members: Sequence[str]) -> _Tree:
    """Every spelling of every member as an answer's first tokens, with common beginnings once."""
    place: dict[tuple[int, ...], int] = {}
    tree = _Tree([], [], [])
    for trait in members:
        for spelled in spellings(chat, pieces_of_model(model), trait):
            for n in range(1, len(spelled) + 1):
                if spelled[:n] not in place:
                    place[spelled[:n]] = len(tree.tokens)
                    tree.tokens.append(spelled[n - 1])
                    tree.parents.append(place[spelled[: n - 1]] + 1 if n > 1 else 0)
            tree.ends.append((trait, place[spelled]))
    if not tree.ends:
        raise InputError(f"{chat.source}: its tokenizer has no way to write {members[0]!r} as an answer's first word")
    return tree


def spellings(chat: Chat, pieces: Sequence[bytes | None], trait: str) -> Iterator[tuple[int, ...]]:
    """Each way to begin an answer with the trait, as tokens; no two are equal."""
    lead, _ = chat.around_answers
    seen = set()
    for form in answers.forms(trait):
        # A template that trims its answers writes no space in front, unless it writes one of its own.
        for text in dict.fromkeys((form, lead + form.lstrip())) if lead or chat.writes(form) else ():
            tokens = tuple(token for token in chat.continuation(text) if token not in chat.stops)
            spelled = b"".join(pieces[token] or b"" for token in tokens if token < len(pieces))
            if tokens not in seen and spelled == text.encode():
                seen.add(tokens)
                yield tokens


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
