"""A corpus scored some samples at a time, so that memory does not grow with it."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from subl_jax.specs import Scores, World


def in_chunks(score: Callable[[jax.Array], jax.Array], samples: jax.Array, rows: int = 256) -> jax.Array:
    """`score`, which maps samples (m, …) to (m, …), of all `samples` (n, …), at most `rows` at a time."""
    return jax.lax.map(lambda one: score(one[None])[0], samples, batch_size=min(rows, len(samples)))


def of_tokens(score: Callable[[Any], jax.Array], world: World, samples: jax.Array, rows: int = 256) -> Scores:
    """`score`, which maps a batch to a number for every place, of all samples; of a sample and of the corpus the mean
    over their tokens. nan where there is nothing to predict."""

    def of(chunk: jax.Array) -> jax.Array:
        batch = world.channel_batch(chunk)
        return jnp.where(world.target_weights(batch) > 0, score(batch), jnp.nan)

    tokens = in_chunks(of, samples, rows).reshape(len(samples), -1)
    return Scores(tokens, jnp.nanmean(tokens, axis=1), jnp.nanmean(tokens))
