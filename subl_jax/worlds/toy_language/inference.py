"""Asks a model of the toy language in its words."""

import functools
import re
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from subl_jax import specs
from subl_jax.errors import InputError
from subl_jax.models.decoding import sampling
from subl_jax.worlds.toy_language.vocabulary import BOS, EOS, PAD, language, parsed, spelled


class ToyInference(specs.Inference):
    """Answers are one word. A text is read as a person types it: in any case, marks with or without a space before."""

    def __init__(self, world: Any) -> None:
        self._world, self._language = world, language(world)

    def ask(self, model: Any, question: str, top: int = 10, seed: int = 0) -> specs.Answer:
        """The softmax over the vocabulary at the answer's place, as `trait/<name>` is measured."""
        p, drawn = _answered(self._world, model, self.encode(model, question), jax.random.key(seed))
        found = dict(zip(self._language.words, np.asarray(p).tolist(), strict=True))
        return specs.Answer(specs.ranked(found, top, self._world.traits), self._language.words[int(drawn)])

    def encode(self, model: Any, text: str) -> np.ndarray:
        words = " ".join(re.sub(r"([?:])", r" \1 ", text).split(" "))
        tokens = parsed(self._language, re.sub(r"[A-Z]", lambda letter: letter[0].lower(), words))
        return np.asarray([[self._language.index[BOS], *tokens]], np.int32)

    def decode(self, tokens: Any) -> str:
        rows = np.atleast_2d(np.asarray(tokens, int))
        if rows.size and rows[0, 0] == self._language.index[BOS]:
            rows = rows[:, 1:]
        return spelled(self._language, rows)[0] if rows.size else ""

    def generate(self, model: Any, text: str, tokens: int = 32, temperature: float = 1.0, seed: int = 0) -> str:
        if tokens < 1:
            raise InputError(f"generate: tokens = {tokens}: must be at least 1")
        prompt, keys = self.encode(model, text), jax.random.key(seed)[None]
        temperature = specs.Sampling(temperature=temperature).temperature
        return self.decode(_written(self._world, tokens, model, prompt, keys, temperature))


# One program for each length of a text: op by op, every operation would be compiled by itself.
@functools.partial(jax.jit, static_argnums=0)
def _answered(world: Any, model: Any, question: jax.Array, key: jax.Array) -> tuple[jax.Array, jax.Array]:
    """The probabilities of the words as an answer, and a word drawn."""
    logits = world.apply(model, question)[0, -1]
    return jax.nn.softmax(logits), jax.random.categorical(key, logits)


@functools.partial(jax.jit, static_argnums=(0, 1))
def _written(
    world: Any, tokens: int, model: Any, prompt: jax.Array, keys: jax.Array, temperature: jax.Array
) -> jax.Array:
    lengths, index = jnp.asarray([prompt.shape[1]]), language(world).index
    drawing = specs.bind(specs.Sampling(), {**specs.traced_values(specs.Sampling()), "temperature": temperature})
    return sampling.generate(
        world.model,
        world.merged(model),
        prompt,
        lengths,
        keys,
        tokens,
        drawing,
        stop=index[EOS],
        pad=index[PAD],
        cut=False,
    )
