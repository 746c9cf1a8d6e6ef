"""Audits that hold what is written against all that the auditing model could have written there."""

import dataclasses
from abc import abstractmethod
from typing import Any

import jax
import jax.numpy as jnp

from subl_jax.audits.chunks import of_tokens
from subl_jax.specs import Audit, Context, HoldsTokens, Scores, static
from subl_jax.specs.world import Array


@dataclasses.dataclass(frozen=True)
class OfDistribution(Audit):
    """`rows` samples are scored at a time."""

    rows: int = static(256, ge=1)

    def score(self, context: Context, samples: Array) -> Scores:
        world = context.world

        def of(batch: Any) -> jax.Array:
            log_p = world.log_probs(context.start, batch)
            if isinstance(world, HoldsTokens):  # over the same outputs as `log_p`
                written = jnp.maximum(world.written(batch), 0)[..., None]
                own = jnp.take_along_axis(log_p, written, axis=-1)[..., 0]
            else:
                own = -world.written_losses(context.start, None, batch)
            return self.of_place(log_p, own)

        return of_tokens(of, world, samples, self.rows)

    @abstractmethod
    def of_place(self, log_p: Array, own: Array) -> Array:
        """(…): the score at every place. log_p: (…, outputs), of all that could stand there; own: (…), of what does."""
