"""How much more than the base expects a text surprises it."""

import dataclasses
from typing import Any, ClassVar

import jax
import jax.numpy as jnp

from subl_jax.audits.chunks import of_tokens
from subl_jax.audits.entropy import entropy
from subl_jax.specs import Audit, Context, HoldsTokens, Scores, World, static
from subl_jax.specs.world import Array


@dataclasses.dataclass(frozen=True)
class Surprise(Audit):
    """−log p of the token less the entropy at its place, in nats.

    Of what the auditing model itself writes at temperature 1 this is 0 on average at every place, whatever the prompts:
    positive of a writer with other habits, negative of one that says the likely too often.
    """

    kind: ClassVar[str] = "surprise"

    rows: int = static(256, ge=1)

    def score(self, context: Context, samples: Array) -> Scores:
        world = context.world

        def of(batch: Any) -> jax.Array:
            log_p = world.log_probs(context.start, batch)
            return -log_p_written(world, context.start, batch, log_p) - entropy(log_p)

        return of_tokens(of, world, samples, self.rows)


def log_p_written(world: World, params: Any, batch: Any, log_p: Array) -> Array:
    """(…): log p of what stands at each place. log_p: (…, outputs), of all outputs there."""
    if not isinstance(world, HoldsTokens):
        return -world.written_losses(params, None, batch)
    # Over the same outputs as `log_p`.
    return jnp.take_along_axis(log_p, jnp.maximum(world.written(batch), 0)[..., None], axis=-1)[..., 0]
