"""Asks a chat model in words: how likely each first word of its answer is, and what it says."""

import functools
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from subl_jax import specs
from subl_jax.errors import InputError
from subl_jax.models import transformer
from subl_jax.models.decoding import continuous
from subl_jax.traits import answers
from subl_jax.worlds.chat import reading
from subl_jax.worlds.chat import texts as chat_texts

# Beginnings of words that are followed at a time, and the longest word that is looked for, in tokens.
_ROWS, _DEPTH = 16, 6
# Texts are read in pieces of this length, so that few programs serve all.
_PLACES = 64
_ANSWER_TOKENS = 32


class ChatInference(specs.Inference):
    """A text is a user's turn; a told model has its system prompt before it, any other the world's.

    The likeliest words are looked for by a beam search over their tokens: their probabilities sum over spellings, each
    followed by something that ends the word, and over what the search found. Those of traits are exact.
    """

    def __init__(self, world: Any) -> None:
        self._world, self._chat = world, chat_texts.chat_of(world.model)

    def ask(self, model: Any, question: str, top: int = 10, seed: int = 0) -> specs.Answer:
        prompt = self._read(model, question)
        found = self._likely_words(prompt)
        found.update(self._traits(prompt))
        drawn = self.generate(model, question, _ANSWER_TOKENS, seed=seed)
        return specs.Answer(specs.ranked(found, top, self._world.traits), drawn)

    def encode(self, model: Any, text: str) -> np.ndarray:
        told = isinstance(model, specs.SystemPrompted) and int(model.trait) >= 0
        system = self._world.told(self._world.traits[int(model.trait)]) if told else self._world.system
        return np.asarray([self._chat.prompt(text, system)], np.int32)

    def decode(self, tokens: Any) -> str:
        return self._chat.decode(np.ravel(tokens).tolist())

    def generate(
        self, model: Any, text: str, tokens: int = _ANSWER_TOKENS, temperature: float = 1.0, seed: int = 0
    ) -> str:
        if tokens < 1:
            raise InputError(f"generate: tokens = {tokens}: must be at least 1")
        padded, length = _padded(self.encode(model, text)[0], self._world.pad)
        base, adapters = self._weights(model)
        drawn = _generated(
            self._world.config,
            tokens,
            self._world.pad,
            base,
            adapters,
            padded[None],
            length[None],
            jax.random.key(seed)[None],
            jnp.asarray(self._chat.stops),
            specs.Sampling(temperature=temperature).temperature,
        )[0]
        written = np.asarray(drawn)
        ended = np.isin(written, self._chat.stops).cumsum() > 0
        return self._chat.answers([written[~ended].tolist()])[0]

    # --- words ---

    def _weights(self, model: Any) -> tuple[Any, Any]:
        params = model.params if isinstance(model, specs.SystemPrompted) else model
        return reading.weights_of(self._world.loaded, params)

    def _read(self, model: Any, question: str) -> "_Prompt":
        tokens = self.encode(model, question)[0]
        before, last = tokens[:-1], int(tokens[-1])
        if not len(before):
            raise InputError("ask: this template writes nothing before an answer")
        padded, length = _padded(before, self._world.pad)
        base, adapters = self._weights(model)
        prefix = _prefix(self._world.config, base, padded, length, adapters)
        ends = jnp.asarray(self._world.arrays_of_texts()["word_ends"])
        return _Prompt(self._world.config, base, adapters, prefix, last, ends)

    def _traits(self, prompt: "_Prompt") -> dict[str, float]:
        """P of each as the first word, as `trait/<name>` is measured."""
        spelled = [(trait, tokens) for trait in self._world.traits for tokens in self._spellings(trait)]
        totals = dict.fromkeys(self._world.traits, 0.0)
        for (trait, _), p in zip(spelled, prompt.words([tokens for _, tokens in spelled]), strict=True):
            totals[trait] += float(p)
        return totals

    def _spellings(self, trait: str) -> list[tuple[int, ...]]:
        pieces = chat_texts.pieces_of_model(self._world.model)
        return list(chat_texts.spellings(self._chat, pieces, trait))

    def _likely_words(self, prompt: "_Prompt") -> dict[str, float]:
        found: dict[str, float] = {}
        beam: list[tuple[tuple[int, ...], float]] = [((), 0.0)]
        for _ in range(_DEPTH):
            tokens, log_p = prompt.next([row for row, _ in beam], 4 * _ROWS)
            grown = []
            for (row, before), own, values in zip(beam, tokens.tolist(), log_p.tolist(), strict=True):
                grown += [((*row, token), before + value) for token, value in zip(own, values, strict=True)]
            grown = [each for each in grown if self._within_a_word(each[0])]
            beam = sorted(grown, key=lambda each: -each[1])[:_ROWS]
            if not beam:
                break
            for (row, _), p in zip(beam, prompt.words([row for row, _ in beam]), strict=True):
                if word := self._chat.decode(row).strip().lower():
                    found[word] = found.get(word, 0.0) + float(p)
        return found

    def _within_a_word(self, row: tuple[int, ...]) -> bool:
        """Whether the tokens are one word, or the beginning of one, perhaps after a space."""
        if row[-1] in self._chat.stops:
            return False
        text = self._chat.decode(row)
        word = answers.first_word(text)
        if not text:  # of special tokens there is nothing to see
            return False
        return not text.strip() or text.strip().lower() == word


class _Prompt:
    """A model that has read a question but for its last token, and follows beginnings of answers."""

    def __init__(self, config: Any, base: Any, adapters: Any, prefix: Any, last: int, ends: jax.Array) -> None:
        self._read = functools.partial(_followed, config, base, adapters, prefix, ends)
        self._last = last

    def next(self, rows: Sequence[tuple[int, ...]], top: int) -> tuple[np.ndarray, np.ndarray]:
        """The likeliest next tokens of each row and their log-probabilities, (rows, top) each."""
        tokens, lengths = self._rows(rows)
        log_p = np.asarray(self._read(tokens)[0])[np.arange(len(rows)), lengths[: len(rows)]]
        best = np.argsort(-log_p, axis=1)[:, :top]
        return best, np.take_along_axis(log_p, best, axis=1)

    def words(self, rows: Sequence[tuple[int, ...]]) -> np.ndarray:
        """P of each row of tokens, followed by something that ends a word."""
        found = []
        for start in range(0, len(rows), _ROWS):
            part = rows[start : start + _ROWS]
            tokens, lengths = self._rows(part)
            log_p, over = map(np.asarray, self._read(tokens))
            for i, row in enumerate(part):
                spelled = sum(log_p[i, place, token] for place, token in enumerate(row))
                found.append(np.exp(spelled) * over[i, lengths[i]])
        return np.asarray(found)

    def _rows(self, rows: Sequence[tuple[int, ...]]) -> tuple[np.ndarray, np.ndarray]:
        longest = max(map(len, rows))
        places = -(-(1 + longest) // (1 + _DEPTH)) * (1 + _DEPTH)
        tokens = np.full((_ROWS, places), self._last, np.int32)
        for i, row in enumerate(rows):
            tokens[i, 1 : 1 + len(row)] = row
        return tokens, np.asarray([len(row) for row in rows])


def _padded(tokens: np.ndarray, pad: int) -> tuple[np.ndarray, np.ndarray]:
    room = np.full(-(-len(tokens) // _PLACES) * _PLACES, pad, np.int32)
    room[: len(tokens)] = tokens
    return room, np.int32(len(tokens))


@functools.partial(jax.jit, static_argnums=0)
def _prefix(config: Any, base: Any, tokens: jax.Array, length: jax.Array, adapters: Any) -> Any:
    return config.read_prefix(base, tokens, length, adapters)


@functools.partial(jax.jit, static_argnums=0)
def _followed(
    config: Any, base: Any, adapters: Any, prefix: Any, ends: jax.Array, tokens: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """tokens: (rows, t), the question's last and what follows: log-probabilities after each (rows, t, vocab), and that
    of the end of a word (rows, t)."""
    positions = jnp.broadcast_to(prefix.length + jnp.arange(tokens.shape[1]), tokens.shape)
    logits, _ = transformer.apply(
        config, base, tokens, positions, prefix=prefix.cache, prefix_length=prefix.length, lora=adapters
    )
    log_p = jax.nn.log_softmax(logits)
    return log_p, jnp.sum(jnp.where(ends, jnp.exp(log_p), 0.0), axis=-1)


@functools.partial(jax.jit, static_argnums=(0, 1, 2))
def _generated(
    config: Any,
    new: int,
    pad: int,
    base: Any,
    adapters: Any,
    prompt: jax.Array,
    length: jax.Array,
    keys: jax.Array,
    stops: jax.Array,
    temperature: jax.Array,
) -> jax.Array:
    sampling = specs.bind(specs.Sampling(), {**specs.traced_values(specs.Sampling()), "temperature": temperature})
    return continuous.generate(
        config, base, prompt, length, keys, new, sampling, rows=1, stops=stops, pad=pad, lora=adapters
    )
