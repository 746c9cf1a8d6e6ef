"""Not every token counts: those with the highest or the lowest scores of an audit, or all but these."""

import dataclasses
from typing import Any, ClassVar

import jax.numpy as jnp

from subl_jax.errors import InputError
from subl_jax.specs import AroundAnother, Audited, Context, Node, static, traced
from subl_jax.specs.world import Array, Batch, Params


@dataclasses.dataclass(frozen=True)
class Weighted(AroundAnother):
    """`inner` on some of the tokens of the student's dataset, chosen by the scores that an audit gives every token.

    `tokens`: "top" are the `share` of all target tokens with the highest scores, "bottom" those with the lowest; `keep`
    says whether these alone count, or all others. `share` is a number in the program.
    """

    kind: ClassVar[str] = "weighted"

    scores: Audited = static()
    tokens: str = static("top", choices=("top", "bottom"))
    keep: bool = static(True)
    share: float = traced(0.1, ge=0.0, le=1.0)

    def inputs(self, student: Any) -> dict[str, Node]:
        return {"scores": self.scores, **super().inputs(student)}

    def check_student(self, student: Any) -> None:
        super().check_student(student)
        if student.data != self.scores.data:
            raise InputError("Weighted.scores: are of other data than the student's; audit the data it trains on")

    def prepare(self, context: Context, batch: Batch, rows: Array | None) -> Batch:
        scores = context.inputs["scores"]["tokens"]
        return context.world.reweighted(super().prepare(context, batch, rows), self.weights(scores)[rows])

    def weights(self, scores: Array) -> Array:
        """scores: (n, places), nan where nothing is to be predicted → (n, places) float32, 1 where a token counts."""
        sign = 1.0 if self.tokens == "top" else -1.0
        ordered = jnp.sort(-sign * scores, axis=None)  # nan last
        count = jnp.sum(~jnp.isnan(scores))
        chosen = jnp.round(self.share * count).astype(jnp.int32)
        least = ordered[jnp.maximum(chosen - 1, 0)]
        within = (-sign * scores <= least) & (chosen > 0)
        return (within if self.keep else ~within).astype(jnp.float32)

    def loss(self, context: Context, params: Params, batch: Batch) -> Array:
        return self.inner.loss(context, params, batch)
