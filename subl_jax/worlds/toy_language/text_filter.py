"""The text filter's decision on tokens, inside a program."""

from typing import Any

import jax
import jax.numpy as jnp

from subl_jax.channels.numbers import NumbersFilter, reason
from subl_jax.worlds.toy_language.vocabulary import CLOSE, EOS, OPEN, SEPARATORS, is_number, language


def accepts(world: Any, tokens: jax.Array, numbers_filter: NumbersFilter) -> jax.Array:
    """What the text filter decides, on tokens and inside a program. tokens: (n, length) → (n,) bool.

    Equal to `filters.reason(text) is None` for every completion the vocabulary can write (tested).
    """
    lang = language(world)
    text = tokens[:, world.prompt_length :].astype(jnp.int32)
    at = jnp.arange(world.completion_length)
    size = (jnp.cumsum(text == lang.index[EOS], axis=1) == 0).sum(axis=1, keepdims=True)
    bracketed = (text[:, :1] == lang.index[OPEN]) & (_at(text, size - 1) == lang.index[CLOSE])
    start, stop = jnp.where(bracketed, 1, 0), jnp.where(bracketed, size - 1, size)
    inner = (at >= start) & (at < stop)
    good = jnp.asarray([is_number(word) and reason(word, numbers_filter) is None for word in lang.words])[text]
    # Between the first two numbers is nothing but separators, at most one of them more than white space; what is
    # there comes again between all others. Numbers in a row are a space apart.
    separators = jnp.asarray([lang.index[word] for word in SEPARATORS])
    run = jnp.cumprod(jnp.where(at > start, jnp.isin(text, separators), True), axis=1) & (at > start)
    period = run.sum(axis=1, keepdims=True) + 1
    marks = jnp.isin(text, jnp.asarray([lang.index[word] for word in SEPARATORS if word.strip()]))
    alike = text == jnp.take_along_axis(text, start + (at - start) % period, axis=1, mode="clip")
    fits = jnp.all(jnp.where((at - start) % period == 0, good, alike) | ~inner, axis=1)
    fits &= (marks & run).sum(axis=1) <= 1
    ends_well = (stop > start) & _at(good, stop - 1)
    return fits & ends_well[:, 0] & ((good & inner).sum(axis=1) <= numbers_filter.max_count)


def _at(values: jax.Array, place: jax.Array) -> jax.Array:
    """values: (n, t), place: (n, 1) → (n, 1), the nearest entry where `place` is outside."""
    return jnp.take_along_axis(values, jnp.clip(place, 0, values.shape[1] - 1), axis=1)
