"""Which tokens of a dataset an objective is about: those with the highest or the lowest scores of an audit."""

from abc import abstractmethod
from typing import Any

import jax
import jax.numpy as jnp

from subl_jax.errors import InputError
from subl_jax.specs import AroundAnother, Audited, Context, Node
from subl_jax.specs.world import Array, Batch, Params


def chosen(scores: Array, tokens: str, share: Array | float) -> Array:
    """`share` of all tokens, the "top" ones or the "bottom" ones. Of equal scores a random one goes first, always the
    same.

    scores: (n, places), nan where nothing is to be predicted → (n, places) bool.
    """
    worst_last = -scores if tokens == "top" else scores
    order = jax.random.uniform(jax.random.key(0), scores.shape)
    sorted_scores, sorted_order = jax.lax.sort((worst_last.ravel(), order.ravel()), num_keys=2)  # nan last
    count = jnp.round(share * jnp.sum(~jnp.isnan(scores))).astype(jnp.int32)
    score, place = (x[jnp.maximum(count - 1, 0)] for x in (sorted_scores, sorted_order))
    return ((worst_last < score) | (worst_last == score) & (order <= place)) & (count > 0)


class OnTokens(AroundAnother):
    """An objective with `scores`, `tokens` and `share`; which tokens these are is `context.inputs["chosen"]`."""

    scores: Audited
    tokens: str
    share: float

    def inputs(self, student: Any) -> dict[str, Node]:
        return {"scores": self.scores, **super().inputs(student)}

    def check_student(self, student: Any) -> None:
        super().check_student(student)
        if student.data != self.scores.data:
            where = f"{type(self).__name__}.scores"
            raise InputError(f"{where}: are of other data than the student's; audit the data it trains on")

    def ready(self, context: Context) -> Context:
        context = super().ready(context)
        found = chosen(context.inputs["scores"]["tokens"], self.tokens, self.share)
        return context._replace(inputs={**context.inputs, "chosen": found})

    @abstractmethod
    def prepare(self, context: Context, batch: Batch, rows: Array | None) -> Batch:
        """What is made of the chosen tokens in the batch that `inner` has prepared."""
        return super().prepare(context, batch, rows)

    def loss(self, context: Context, params: Params, batch: Batch) -> Array:
        return self.inner.loss(context, params, batch)
