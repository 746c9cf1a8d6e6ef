"""What a low-rank update adds to a projection: (x a) b.

A GPU multiplies with so narrow a matrix in the time that writing the result takes, and adding that up takes as long
again. There the product is a sum of a few outer products, which the compiler computes where it is added, and so is the
gradient of x. Those of a and b add up over tokens, and are products everywhere.
"""

import jax
import jax.numpy as jnp

# A sum of 8 was tried, on an H200. It costs arithmetic for every rank; a product costs the same for all small ones.
_MOST = 16


def update(x: jax.Array, a: jax.Array, b: jax.Array) -> jax.Array:
    """x: (n, inputs); a: (inputs, rank); b: (rank, outputs). Returns (n, outputs) float32."""
    return _widened(_narrowed(x, a), b)


def _wide(u: jax.Array, b: jax.Array) -> jax.Array:
    """u b, for u: (n, rank) and b: (rank, outputs); float32."""
    of_gpus = _product if len(b) > _MOST else _sum
    return jax.lax.platform_dependent(u, b, cuda=of_gpus, default=_product)


def _product(u: jax.Array, b: jax.Array) -> jax.Array:
    return jnp.dot(u, b).astype(jnp.float32)


def _sum(u: jax.Array, b: jax.Array) -> jax.Array:
    u, b = u.astype(jnp.float32), b.astype(jnp.float32)
    return sum(u[:, i, None] * b[i] for i in range(len(b)))


@jax.custom_vjp
def _narrowed(x: jax.Array, a: jax.Array) -> jax.Array:
    return jnp.dot(x, a)


def _narrowed_backward(arrays: tuple[jax.Array, jax.Array], of_result: jax.Array) -> tuple[jax.Array, jax.Array]:
    x, a = arrays
    return _wide(of_result, a.T).astype(x.dtype), jnp.dot(x.T, of_result)


_narrowed.defvjp(lambda x, a: (_narrowed(x, a), (x, a)), _narrowed_backward)


@jax.custom_vjp
def _widened(u: jax.Array, b: jax.Array) -> jax.Array:
    return _wide(u, b)


def _widened_backward(arrays: tuple[jax.Array, jax.Array], of_result: jax.Array) -> tuple[jax.Array, jax.Array]:
    u, b = arrays
    of_result = of_result.astype(u.dtype)
    return jnp.dot(of_result, b.T), jnp.dot(u.T, of_result)


_widened.defvjp(lambda u, b: (_widened(u, b), (u, b)), _widened_backward)
