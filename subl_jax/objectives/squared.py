"""Squared error of logits: the distance of the theorem's first form."""

import dataclasses
from typing import ClassVar

import jax
import jax.numpy as jnp

from subl_jax.specs import Context, Objective
from subl_jax.specs.world import Array, Batch, Params
from subl_jax.training.losses import weighted_mean


@dataclasses.dataclass(frozen=True)
class Squared(Objective):
    """Half the squared distance between the logits of teacher and student, a mean over tokens."""

    kind: ClassVar[str] = "squared"
    asks_teacher: ClassVar[bool] = True

    @property
    def shorthand(self) -> str:
        return "squared"

    def loss(self, context: Context, params: Params, batch: Batch) -> Array:
        world = context.world
        said = jax.lax.stop_gradient(world.channel_logits(context.teacher, batch))
        own = world.channel_logits(params, batch)
        return weighted_mean(0.5 * jnp.sum((own - said) ** 2, axis=-1), world.target_weights(batch))
