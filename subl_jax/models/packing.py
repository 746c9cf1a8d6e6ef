"""Batches without their padding: matrices are multiplied with the places that hold a token."""

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp

MULTIPLE = 16  # sizes of packed matrices that machines like


class Packing(NamedTuple):
    """Which places of a batch there are: matrices are multiplied with these only, and attention alone sees the rest.

    places: (packed,) int32, their indices into batch * length, that product itself where there are fewer.
    slots: (batch * length,) int32, the inverse: where a place is among the packed, their number where it is not.
    """

    places: jax.Array
    slots: jax.Array


def room(share: float, rows: int, places: int) -> int:
    """How many of rows * places to compute: this share, rounded up, and never less than one row has."""
    return min(rows * places, max(places, math.ceil(share * rows * places / MULTIPLE) * MULTIPLE))


def packing(there: jax.Array, packed: int) -> Packing:
    """there: (batch, length) bool, at most `packed` of them true."""
    flat = there.reshape(-1)
    (places,) = jnp.nonzero(flat, size=packed, fill_value=flat.size)
    return Packing(places, jnp.where(flat, jnp.cumsum(flat) - 1, packed))


@jax.custom_vjp
def rows_of(x: jax.Array, index: jax.Array, inverse: jax.Array) -> jax.Array:
    """x[index] along the first axis, zeros where it is outside. `inverse` leads back, and the gradient with it."""
    return jnp.take(x, index, axis=0, mode="fill", fill_value=0)


rows_of.defvjp(
    lambda x, index, inverse: (rows_of(x, index, inverse), (index, inverse)),
    lambda both, gradient: (rows_of(gradient, both[1], both[0]), None, None),
)
