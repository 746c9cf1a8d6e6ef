"""Hard targets: what the teacher wrote."""

import dataclasses
from typing import ClassVar

from subl_jax.specs import Context, Objective
from subl_jax.specs.world import Array, Batch, Params
from subl_jax.training.losses import weighted_mean


@dataclasses.dataclass(frozen=True)
class Hard(Objective):
    """Cross-entropy with the samples themselves, in nats, a mean over their tokens."""

    kind: ClassVar[str] = "hard"

    @property
    def shorthand(self) -> str:
        return "hard"

    def loss(self, context: Context, params: Params, batch: Batch) -> Array:
        losses = context.world.written_losses(params, context.teacher, batch)
        return weighted_mean(losses, context.world.target_weights(batch))
