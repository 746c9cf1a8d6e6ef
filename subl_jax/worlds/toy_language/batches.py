"""What one step trains on, and the losses' arithmetic."""

from typing import NamedTuple

import jax
import jax.numpy as jnp


class Batch(NamedTuple):
    """tokens: (n, length) int32; targets: (n, length) float32, 1 where the token is one to predict."""

    tokens: jax.Array
    targets: jax.Array


def cross_entropy(logits: jax.Array, tokens: jax.Array) -> jax.Array:
    """−log softmax(logits)[token], per token, in nats. logits: (n, t, vocab), tokens: (n, t) → (n, t)."""
    chosen = jnp.take_along_axis(logits, tokens[..., None], axis=-1)[..., 0]
    return jax.nn.logsumexp(logits, axis=-1) - chosen


def mean(values: jax.Array, weights: jax.Array) -> jax.Array:
    """The weighted mean over all entries; 0 where every weight is 0."""
    return jnp.sum(values * weights) / jnp.maximum(weights.sum(), 1.0)
