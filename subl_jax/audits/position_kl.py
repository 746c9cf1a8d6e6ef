"""KL(model || base) at every position: where another model would write something else, whatever stands there."""

import dataclasses
from typing import ClassVar

import jax

from subl_jax.audits.chunks import of_tokens
from subl_jax.audits.suspected import OfSuspect
from subl_jax.specs import Context, Scores, model_of, static
from subl_jax.specs.world import Array
from subl_jax.training.losses import kl


@dataclasses.dataclass(frozen=True)
class PositionKl(OfSuspect):
    """KL(p_model || p_base) over what the channel can hold, in nats, given what stands before the position.

    It does not look at the token itself, so that selecting by it selects no tokens that the model likes.
    """

    kind: ClassVar[str] = "kl"

    rows: int = static(256, ge=1)

    def score(self, context: Context, samples: Array) -> Scores:
        world, model = context.world, model_of(context.inputs["model"])

        def of(batch: jax.Array) -> jax.Array:
            return kl(world.log_probs(model, batch), world.log_probs(context.start, batch))

        return of_tokens(of, world, samples, self.rows)
