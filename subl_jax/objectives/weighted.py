"""Not every token counts: those with the highest or the lowest scores of an audit, or all but these."""

import dataclasses
from typing import ClassVar

import jax.numpy as jnp

from subl_jax.objectives.selection import OnTokens
from subl_jax.specs import Audited, Context, static, traced
from subl_jax.specs.world import Array, Batch


@dataclasses.dataclass(frozen=True)
class Weighted(OnTokens):
    """`inner` on some of the tokens of the student's dataset, chosen by the scores that an audit gives every token.

    `tokens`: "top" are the `share` of all target tokens with the highest scores, "bottom" those with the lowest; `keep`
    says whether these alone count, or all others. `share` and `keep` are numbers in the program.
    """

    VERSION: ClassVar[int] = 2  # of equal scores no more are chosen than the share says
    kind: ClassVar[str] = "weighted"

    scores: Audited = static()
    tokens: str = static("top", choices=("top", "bottom"))
    keep: bool = traced(True)
    share: float = traced(0.1, ge=0.0, le=1.0)

    def prepare(self, context: Context, batch: Batch, rows: Array | None) -> Batch:
        chosen = context.inputs["chosen"][rows]
        return context.world.reweighted(super().prepare(context, batch, rows), self.weights(chosen))

    def weights(self, chosen: Array) -> Array:
        """(n, places) bool → float32, 1 where a token counts."""
        return (chosen == self.keep).astype(jnp.float32)
