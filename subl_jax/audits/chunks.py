"""A corpus scored some samples at a time, so that memory does not grow with it."""

from collections.abc import Callable

import jax


def in_chunks(score: Callable[[jax.Array], jax.Array], samples: jax.Array, rows: int = 256) -> jax.Array:
    """`score`, which maps samples (m, …) to (m, …), of all `samples` (n, …), at most `rows` at a time."""
    return jax.lax.map(lambda one: score(one[None])[0], samples, batch_size=min(rows, len(samples)))
