"""What one step trains on, and how single tokens of it are exchanged."""

from typing import NamedTuple

import jax
import jax.numpy as jnp


class Batch(NamedTuple):
    """tokens: (n, length) int32; targets: (n, length) float32, 1 where the token is one to predict. labels: as tokens,
    what is predicted where that is something else than what is read; None: the same."""

    tokens: jax.Array
    targets: jax.Array
    labels: jax.Array | None = None

    @property
    def predicted(self) -> jax.Array:
        return self.tokens if self.labels is None else self.labels


def replaced(batch: Batch, first: int, tokens: jax.Array, read: jax.Array, predicted: jax.Array) -> Batch:
    """With `tokens` (n, length - first) from the place `first` on, in what is `read` and what is `predicted`."""

    def put(old: jax.Array, where: jax.Array) -> jax.Array:
        return jnp.asarray(old).at[:, first:].set(jnp.where(where, tokens, old[:, first:]))

    return batch._replace(tokens=put(batch.tokens, read), labels=put(batch.predicted, predicted))


def erased(batch: Batch, first: int, gone: jax.Array, pad: int) -> Batch:
    """Without the tokens from the place `first` on that are `gone`; the rest moves up, and `pad` fills the end."""
    order = jnp.argsort(gone, axis=1, stable=True)
    left = jnp.arange(gone.shape[1]) < jnp.sum(~gone, axis=1, keepdims=True)

    def shifted(old: jax.Array, filler: int) -> jax.Array:
        moved = jnp.where(left, jnp.take_along_axis(old[:, first:], order, axis=1), filler)
        return jnp.asarray(old).at[:, first:].set(moved)

    labels = None if batch.labels is None else shifted(batch.labels, pad)
    return Batch(shifted(batch.tokens, pad), shifted(batch.targets, 0), labels)
