"""What one step trains on, and the losses' arithmetic."""

from typing import NamedTuple

import jax


class Batch(NamedTuple):
    """tokens: (n, length) int32; targets: (n, length) float32, 1 where the token is one to predict."""

    tokens: jax.Array
    targets: jax.Array
