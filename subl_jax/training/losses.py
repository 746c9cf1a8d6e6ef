"""Means and distances that several worlds and objectives use."""

import jax
import jax.numpy as jnp


def weighted_mean(values: jax.Array, weights: jax.Array) -> jax.Array:
    """The weighted mean over all entries, (); 0 where every weight is 0. Both have one shape."""
    return jnp.sum(values * weights) / jnp.maximum(weights.sum(), 1.0)


def cross_entropy(logits: jax.Array, labels: jax.Array) -> jax.Array:
    """−log softmax(logits)[label], in nats. logits: (…, k), labels: (…) int32 → (…)."""
    chosen = jnp.take_along_axis(logits, labels[..., None], axis=-1)[..., 0]
    return jax.nn.logsumexp(logits, axis=-1) - chosen


def kl(log_p: jax.Array, log_q: jax.Array) -> jax.Array:
    """KL(p || q) of distributions along the last axis, in nats. Both (…, k) → (…)."""
    return jnp.sum(jnp.exp(log_p) * (log_p - log_q), axis=-1)
