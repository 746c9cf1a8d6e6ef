"""A defence in the loss: the student is held near the model that it started from."""

import dataclasses
from typing import Any, ClassVar

import jax

from subl_jax.specs import Context, Node, Objective, static, traced
from subl_jax.specs.world import Array, Batch, Params
from subl_jax.training.losses import kl, weighted_mean


@dataclasses.dataclass(frozen=True)
class KlToStart(Objective):
    """`inner` plus `strength` × KL(start || student), in nats, a mean over the tokens of the same batch.

    It is taken over what the channel can hold, as the distance to the teacher is. `strength` is a number in the
    program: a sweep over it compiles once.
    """

    kind: ClassVar[str] = "kl_to_start"

    inner: Objective = static()
    strength: float = traced(1.0, ge=0.0)

    @property
    def asks_teacher(self) -> bool:
        return self.inner.asks_teacher

    def inputs(self, student: Any) -> dict[str, Node]:
        return self.inner.inputs(student)

    def check_student(self, student: Any) -> None:
        self.inner.check_student(student)

    def prepare(self, context: Context, batch: Batch, rows: Array | None) -> Batch:
        return self.inner.prepare(context, batch, rows)

    def loss(self, context: Context, params: Params, batch: Batch) -> Array:
        world = context.world
        log_p = jax.lax.stop_gradient(world.log_probs(context.start, batch))
        moved = weighted_mean(kl(log_p, world.log_probs(params, batch)), world.target_weights(batch))
        return self.inner.loss(context, params, batch) + self.strength * moved
