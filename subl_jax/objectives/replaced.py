"""Some tokens are exchanged for what the start would write there: in what is read, in what is learnt, or in both."""

import dataclasses
from typing import Any, ClassVar

import jax
import jax.numpy as jnp

from subl_jax.errors import InputError
from subl_jax.objectives.selection import OnTokens
from subl_jax.specs import Audited, Context, HoldsTokens, static, traced
from subl_jax.specs.world import Array, Batch


@dataclasses.dataclass(frozen=True)
class Replaced(OnTokens):
    """`inner` on data in which the `share` of the tokens with the "top" or the "bottom" scores are others.

    The others are drawn from the student's start, given the tokens that stood before, over what the channel can hold;
    a row has the same ones in every epoch. `what`: they are the "label" that is predicted at their place, the "input"
    that is read for the places after it, or "both".
    """

    kind: ClassVar[str] = "replaced"

    scores: Audited = static()
    tokens: str = static("top", choices=("top", "bottom"))
    what: str = static("both", choices=("label", "input", "both"))
    share: float = traced(0.1, ge=0.0, le=1.0)

    def check_student(self, student: Any) -> None:
        super().check_student(student)
        if not isinstance(student.world, HoldsTokens):
            raise InputError(f"Replaced: {student.world.name} has no tokens to exchange")
        if self.what == "label" and self.inner.asks_teacher:
            raise InputError(f"Replaced.what = 'label': {type(self.inner).__name__} does not read labels; use Hard")

    def prepare(self, context: Context, batch: Batch, rows: Array | None) -> Batch:
        batch = super().prepare(context, batch, rows)
        chosen, nowhere = context.inputs["chosen"][rows], jnp.zeros((), bool)
        return context.world.replaced(
            batch,
            self._drawn(context, batch, rows),
            nowhere if self.what == "label" else chosen,
            nowhere if self.what == "input" else chosen,
        )

    def _drawn(self, context: Context, batch: Batch, rows: Array | None) -> Array:
        """(n, places) int32: outputs of the channel, of each row always the same."""
        cumulative = jnp.cumsum(jnp.exp(context.world.log_probs(context.start, batch)), axis=-1)
        keys = jax.vmap(jax.random.fold_in, (None, 0))(context.key, rows)
        uniform = jax.vmap(lambda key: jax.random.uniform(key, cumulative.shape[1:-1]))(keys)
        return jnp.sum(cumulative[..., :-1] <= uniform[..., None] * cumulative[..., -1:], axis=-1)
