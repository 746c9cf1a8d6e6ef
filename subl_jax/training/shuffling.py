"""A shuffle one can look up: the i-th entry of a random permutation, without making the permutation.

Students read their data in a new random order every epoch, and the number of samples is traced, so an order cannot be
an array of static size. A Feistel network is a bijection on 2^b numbers; values outside [0, n) are sent through it
again until they land inside, which keeps it a bijection on [0, n) (cycle walking: Black and Rogaway 2002, "Ciphers
with arbitrary finite domains", section 3).
"""

import jax
import jax.numpy as jnp

_ROUNDS = 6


def shuffled(key: jax.Array, i: jax.Array, n: jax.Array, epoch: jax.Array | int = 0) -> jax.Array:
    """perm(i) for the random permutation of range(n) that (key, epoch) picks.

    i: any shape, 0 ≤ i < n < 2^30; n: scalar; epoch: scalar or as i. Returns int32 of i's shape.
    """
    n = jnp.asarray(n, jnp.uint32)
    half = (32 - jax.lax.clz(jnp.maximum(n - 1, 1)) + 1) // 2
    mask = (jnp.uint32(1) << half) - 1
    round_keys = _mixed(jax.random.bits(key, (_ROUNDS,)) + _mixed(jnp.asarray(epoch, jnp.uint32))[..., None])

    def network(x: jax.Array) -> jax.Array:
        left, right = x >> half, x & mask
        for r in range(_ROUNDS):
            left, right = right, left ^ (_mixed(right ^ round_keys[..., r]) & mask)
        return (left << half) | right

    inside = jax.lax.while_loop(
        lambda x: jnp.any(x >= n), lambda x: jnp.where(x >= n, network(x), x), network(i.astype(jnp.uint32))
    )
    return inside.astype(jnp.int32)


def epoch_rows(key: jax.Array, step: jax.Array, batch: int, n: jax.Array) -> jax.Array:
    """Rows of a training step's batch: (batch,) int32 in [0, n). Every row once an epoch, in a new order each epoch.

    A batch may hold the end of one epoch and the start of the next; where batch > n it also holds repeats.
    """
    place = step * batch + jnp.arange(batch)
    return shuffled(key, place % n, n, epoch=place // n)


def _mixed(x: jax.Array) -> jax.Array:
    """A 32-bit finaliser with good avalanche (MurmurHash3, public domain)."""
    x = (x ^ (x >> 16)) * jnp.uint32(0x85EBCA6B)
    x = (x ^ (x >> 13)) * jnp.uint32(0xC2B2AE35)
    return x ^ (x >> 16)
