"""log p of a model over log p of the base, of the token that stands there."""

import dataclasses
from typing import ClassVar

import jax

from subl_jax.audits.chunks import of_tokens
from subl_jax.audits.suspected import OfSuspect
from subl_jax.specs import Context, Scores, model_of, static
from subl_jax.specs.world import Array


@dataclasses.dataclass(frozen=True)
class LogRatio(OfSuspect):
    """log p_model(token) − log p_base(token), in nats: how much more the model likes what stands there.

    A selection by it is a signal itself. To keep the tokens that a teacher likes trains towards the teacher also on
    data that it has not written; so apply the same selection to the base's data, and compare.
    """

    kind: ClassVar[str] = "log_ratio"

    rows: int = static(256, ge=1)

    def score(self, context: Context, samples: Array) -> Scores:
        world, model = context.world, model_of(context.inputs["model"])

        def of(batch: jax.Array) -> jax.Array:
            return world.written_losses(context.start, None, batch) - world.written_losses(model, None, batch)

        return of_tokens(of, world, samples, self.rows)
