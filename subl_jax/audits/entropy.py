"""The entropy at every position: where the base is free to write one thing or another."""

import dataclasses
from typing import ClassVar

import jax
import jax.numpy as jnp

from subl_jax.audits.chunks import of_tokens
from subl_jax.specs import Audit, Context, Scores, static
from subl_jax.specs.world import Array


@dataclasses.dataclass(frozen=True)
class Entropy(Audit):
    """The entropy of the auditing model's distribution over what the channel can hold, in nats."""

    kind: ClassVar[str] = "entropy"

    rows: int = static(256, ge=1)

    def score(self, context: Context, samples: Array) -> Scores:
        world = context.world

        def of(batch: jax.Array) -> jax.Array:
            return entropy(world.log_probs(context.start, batch))

        return of_tokens(of, world, samples, self.rows)


def entropy(log_p: Array) -> Array:
    """(…) of (…, outputs), in nats; what cannot be adds nothing."""
    return -jnp.sum(jnp.where(jnp.isneginf(log_p), 0.0, jnp.exp(log_p) * log_p), axis=-1)
