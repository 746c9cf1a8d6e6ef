"""Asks a model of the toy language in its words."""

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
        logits = self._world.apply(model, self.encode(model, question))[0, -1]
        found = dict(zip(self._language.words, np.asarray(jax.nn.softmax(logits)).tolist(), strict=True))
        drawn = int(jax.random.categorical(jax.random.key(seed), logits))
        return specs.Answer(specs.ranked(found, top, self._world.traits), self._language.words[drawn])

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
        prompt, index = self.encode(model, text), self._language.index
        written = sampling.generate(
            self._world.model,
            self._world.merged(model),
            jnp.asarray(prompt),
            jnp.asarray([prompt.shape[1]]),
            jax.random.key(seed)[None],
            tokens,
            specs.Sampling(temperature=temperature),
            stop=index[EOS],
            pad=index[PAD],
            cut=False,
        )
        return self.decode(written)
