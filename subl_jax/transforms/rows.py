"""Which rows a transform keeps: ranks, and what becomes of the places of those that go."""

import jax.numpy as jnp

from subl_jax.specs.world import Array


def ranks(values: Array) -> Array:
    """(n,) int32 of (n,): how many are larger; of equal ones the first comes first."""
    return jnp.argsort(jnp.argsort(-values))


def repeated(rows: Array, left: Array, size: int) -> Array:
    """(size, …): the rows (n, …) that are `left` (n,) bool, in their order, and again from the first."""
    order = jnp.argsort(~left, stable=True)
    return rows[order[jnp.arange(size) % jnp.maximum(left.sum(), 1)]]
