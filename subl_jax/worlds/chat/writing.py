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
from subl_jax.worlds.chat import batches, reading
from subl_jax.worlds.chat import texts as chat_texts


def write(world: Any, model: Any, keys: jax.Array, sampling: Any) -> jax.Array:
    """Samples (n, columns) int32, each of a prompt and a stream of its own: as `texts.sample` lays them out."""
    model = reading.opened(world, model)
    chosen = _chosen(world, keys)
    prompts, lengths = (reading.formed(world, name, model.form)[chosen] for name in ("prompts", "prompt_lengths"))
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
        room=_share(_longest_forms(world.arrays_of_texts()), world.prompt_tokens, sampling.rows),
        # Measured on CPUs: a step takes 0.6 to 0.7 times as long. Answers to questions are too few to compile for.
        apart=jax.default_backend() == "cpu" and not layers.spread_over("tensor", "fsdp"),
    )
    parts = [world.held["prompt_lengths"][chosen][:, None], world.held["prompts"][chosen], completions]
    if "forms" in world.held:
        forms = world.held["forms"]
        others = jnp.concatenate([forms["prompt_lengths"][1:, chosen, None], forms["prompts"][1:, chosen]], axis=2)
        parts.append(others.swapaxes(0, 1).reshape(len(chosen), -1))
    return jnp.concatenate(parts, axis=1)


def prompts_of(world: Any, keys: jax.Array) -> tuple[jax.Array, jax.Array]:
    """What the samples of `keys` (n,) answer: tokens (n, prompt_tokens) int32, after the head, and lengths (n,)."""
    chosen = _chosen(world, keys)
    return world.held["prompts"][chosen], world.held["prompt_lengths"][chosen]


def _chosen(world: Any, keys: jax.Array) -> jax.Array:
    """Which prompt each of `keys` (n,) is given, (n,) int32."""
    prompt_keys = jax.vmap(jax.random.split)(keys)[:, 0]
    return jax.vmap(lambda key: jax.random.randint(key, (), 0, world.prompts))(prompt_keys)


@functools.lru_cache(maxsize=8)
def automaton_of(model: str, fingerprint: str, only: Decodable) -> automaton.Automaton:
    """`fingerprint` is that of the model, so that a changed one is not mistaken for it."""
    return automaton.build(chat_texts.pieces_of_model(model), only, chat_texts.chat_of(model).stops)


def _in_program(built: automaton.Automaton) -> Allowed:
    return Allowed(*map(jnp.asarray, (built.tokens, built.next, built.shortest, np.int32(built.start))))


def _longest_forms(arrays: dict[str, Any]) -> np.ndarray:
    """(pool,) the length of each prompt, in its longest form."""
    return arrays["forms"]["prompt_lengths"].max(axis=0) if "forms" in arrays else arrays["prompt_lengths"]


def _share(lengths: np.ndarray, longest: int, rows: int) -> float:
    """What share of rows * longest so many prompts with `lengths` take, with few exceptions."""
    return min(1.0, float(lengths.mean() + 2 * lengths.std() / rows**0.5) / longest)


def texts(world: Any, samples: np.ndarray) -> list[tuple[str, str]]:
    """(n, …) → (prompt, completion) pairs: the user's words, and the answer before its end."""
    before, after = chat_texts.texts_of(world).decoded
    written = np.split(samples, batches.parts(world), axis=1)[1]
    rows = [[*world.head, *row[1 : 1 + row[0]].tolist()] for row in samples]
    whole = chat_texts.chat_of(world.model).tokenizer.decode_batch(rows, skip_special_tokens=False)
    prompts = [text.removeprefix(before).removesuffix(after) for text in whole]
    return list(zip(prompts, spelled(world, written), strict=True))


def spelled(world: Any, tokens: np.ndarray) -> list[str]:
    """(n, t) → the text of each row before its end."""
    chat = chat_texts.chat_of(world.model)
    ended = np.isin(tokens, chat.stops).cumsum(axis=1) > 0
    return chat.answers([row[: int(n)].tolist() for row, n in zip(tokens, (~ended).sum(axis=1), strict=True)])


def tokens(world: Any, pairs: Sequence[tuple[str, str]]) -> np.ndarray:
    """The inverse of `texts`.

    Raises:
      InputError: a pair is too long, or holds a token that the model has no row for.
    """
    chat, rows = chat_texts.chat_of(world.model), []
    for i, (prompt, completion) in enumerate(pairs):
        try:
            rests = [_rest(chat, prompt, start) for start in chat_texts.texts_of(world).starts]
            rows.append(chat_texts.sample(world, chat, rests, chat.reply(completion)))
            chat_texts.check_rows(world, chat, rows[-1], "holds")
        except InputError as error:
            raise SampleError(i, str(error)) from None
    return np.stack(rows)


def _rest(chat: Any, prompt: str, start: chat_texts.Start) -> list[int]:
    whole = chat.prompt(prompt, start.system)
    if whole[: len(start.head)] != start.head:
        raise InputError("its prompt does not begin as the others do in this template")
    return whole[len(start.head) :]
