"""Soft targets: the teacher's distribution at every token of its samples."""

import dataclasses
from typing import ClassVar

import jax
import jax.numpy as jnp

from subl_jax.specs import Context, Objective, static
from subl_jax.specs.world import Array, Batch, Params
from subl_jax.training.losses import kl, weighted_mean


@dataclasses.dataclass(frozen=True)
class Soft(Objective):
    """KL between teacher and student, in nats, a mean over tokens (Hinton et al. 2015, arXiv 1503.02531).

    `direction`: "forward" is KL(teacher || student), which covers all that the teacher may say; "reverse" is
    KL(student || teacher), which seeks the teacher's likeliest (Agarwal et al. 2024, arXiv 2306.13649). Only the
    `top_k` likeliest of the teacher count, renormalised in both (0: all).
    """

    kind: ClassVar[str] = "soft"
    asks_teacher: ClassVar[bool] = True

    direction: str = static("forward", choices=("forward", "reverse"))
    top_k: int = static(0, ge=0)

    @property
    def shorthand(self) -> str | None:
        return "soft" if self == Soft() else None

    def loss(self, context: Context, params: Params, batch: Batch) -> Array:
        world = context.world
        log_p = jax.lax.stop_gradient(world.log_probs(context.teacher, batch))
        log_q = world.log_probs(params, batch)
        if 0 < self.top_k < log_p.shape[-1]:
            log_p, chosen = jax.lax.top_k(log_p, self.top_k)
            log_p = jax.nn.log_softmax(log_p)
            log_q = jax.nn.log_softmax(jnp.take_along_axis(log_q, chosen, axis=-1))
        distance = kl(log_p, log_q) if self.direction == "forward" else kl(log_q, log_p)
        return weighted_mean(distance, world.target_weights(batch))
