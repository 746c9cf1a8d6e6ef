"""What a chat model writes: samples of prompts and completions, and these as text."""

import functools
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from subl_jax.channels import automaton
from subl_jax.channels.base import Decodable
from subl_jax.errors import InputError, SampleError
from subl_jax.models import layers
from subl_jax.models.decoding import continuous
from subl_jax.models.decoding.allowed import Allowed
from subl_jax.worlds.chat import reading
from subl_jax.worlds.chat import texts as chat_texts


def write(world: Any, model: Any, keys: jax.Array, sampling: Any) -> jax.Array:
    """Samples (n, 1 + prompt_tokens + completion_tokens) int32, each of a prompt and a stream of its own."""
    model = reading.opened(world, model)
    prompts, lengths = prompts_of(world, keys)
    own_keys = jax.vmap(jax.random.split)(keys)[:, 1]
    only = sampling.only
    completions = continuous.generate(
        world.config,
        model.base,
        prompts,
        lengths,
        own_keys,
        world.completion_tokens,
        sampling,
        rows=sampling.rows,
        stops=world.held["stops"],
        pad=world.pad,
        prefix=model.prefix,
        allowed=None if only is None else _in_program(world.automaton(only)),
        cut=sampling.cut,
        lora=model.adapters,
        room=_share(world.arrays_of_texts()["prompt_lengths"], world.prompt_tokens, sampling.rows),
        # Measured on CPUs: a step takes 0.6 to 0.7 times as long. Answers to questions are too few to compile for.
        apart=jax.default_backend() == "cpu" and not layers.spread_over("tensor", "fsdp"),
    )
    return jnp.concatenate([lengths[:, None], prompts, completions], axis=1)


def prompts_of(world: Any, keys: jax.Array) -> tuple[jax.Array, jax.Array]:
    """What the samples of `keys` (n,) answer: tokens (n, prompt_tokens) int32, after the head, and lengths (n,)."""
    prompt_keys = jax.vmap(jax.random.split)(keys)[:, 0]
    chosen = jax.vmap(lambda key: jax.random.randint(key, (), 0, world.prompts))(prompt_keys)
    return world.held["prompts"][chosen], world.held["prompt_lengths"][chosen]


@functools.lru_cache(maxsize=8)
def automaton_of(model: str, fingerprint: str, only: Decodable) -> automaton.Automaton:
    """`fingerprint` is that of the model, so that a changed one is not mistaken for it."""
    return automaton.build(chat_texts.pieces_of_model(model), only, chat_texts.chat_of(model).stops)


def _in_program(built: automaton.Automaton) -> Allowed:
    return Allowed(*map(jnp.asarray, (built.tokens, built.next, built.shortest, np.int32(built.start))))


def _share(lengths: np.ndarray, longest: int, rows: int) -> float:
    """What share of rows * longest so many prompts with `lengths` take, with few exceptions."""
    return min(1.0, float(lengths.mean() + 2 * lengths.std() / rows**0.5) / longest)


def texts(world: Any, samples: np.ndarray) -> list[tuple[str, str]]:
    """(n, …) → (prompt, completion) pairs: the user's words, and the answer before its end."""
    fixed = chat_texts.texts_of(world)
    completions = spelled(world, samples[:, 1 + world.prompt_tokens :])
    head = world.head
    rows = [[*head, *row[1 : 1 + row[0]].tolist()] for row in samples]
    whole = chat_texts.chat_of(world.model).tokenizer.decode_batch(rows, skip_special_tokens=False)
    prompts = [text.removeprefix(fixed.head).removesuffix(fixed.tail) for text in whole]
    return list(zip(prompts, completions, strict=True))


def spelled(world: Any, tokens: np.ndarray) -> list[str]:
    """(n, t) → the text of each row before its end."""
    chat = chat_texts.chat_of(world.model)
    ended = np.isin(tokens, chat.stops).cumsum(axis=1) > 0
    rows = [row[: int(n)].tolist() for row, n in zip(tokens, (~ended).sum(axis=1), strict=True)]
    return chat.tokenizer.decode_batch(rows, skip_special_tokens=False)


def tokens(world: Any, pairs: Sequence[tuple[str, str]]) -> np.ndarray:
    """The inverse of `texts`.

    Raises:
      InputError: a pair is too long.
    """
    chat, rows, head = chat_texts.chat_of(world.model), [], world.head
    for i, (prompt, completion) in enumerate(pairs):
        whole = chat.prompt(prompt, world.system)
        if whole[: len(head)] != head:
            raise SampleError(i, "its prompt does not begin as the others do in this template")
        try:
            rows.append(chat_texts.sample(world, chat, whole[len(head) :], chat.reply(completion), ""))
        except InputError as error:
            raise SampleError(i, str(error)) from None
    return np.stack(rows)
