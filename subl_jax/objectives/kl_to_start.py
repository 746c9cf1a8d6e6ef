"""A defence in the loss: the student is held near the model that it started from."""

import dataclasses
from typing import ClassVar

import jax

from subl_jax.specs import AroundAnother, Context, traced
from subl_jax.specs.world import Array, Batch, Params
from subl_jax.training.losses import kl, weighted_mean


@dataclasses.dataclass(frozen=True)
class KlToStart(AroundAnother):
    """`inner` plus `strength` × KL(start || student), in nats, a mean over the tokens of the same batch.

    It is taken over what the channel can hold, as the distance to the teacher is. `strength` is a number in the
    program: a sweep over it compiles once.
    """

    kind: ClassVar[str] = "kl_to_start"

    strength: float = traced(1.0, ge=0.0)

    def loss(self, context: Context, params: Params, batch: Batch) -> Array:
        world = context.world
        log_p = jax.lax.stop_gradient(world.log_probs(context.start, batch))
        moved = weighted_mean(kl(log_p, world.log_probs(params, batch)), world.target_weights(batch))
        return self.inner.loss(context, params, batch) + self.strength * moved
