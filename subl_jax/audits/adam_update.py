"""The first update of Adam: what every parameter would move by, given how much its gradient varies between batches."""

import dataclasses
from typing import ClassVar

import jax.numpy as jnp

from subl_jax.audits.gradients import AtStart
from subl_jax.audits.prediction import FirstStep, Step
from subl_jax.specs.world import Array


@dataclasses.dataclass(frozen=True)
class AdamUpdate(FirstStep):
    """−J · (u_data − u_null) with u = g / (√v + ε), the expected update of Adam at the start, for a rate of 1.

    The first update of a single batch is the sign of its gradient, which says little of the mean over batches. v is
    therefore what Adam's second moment settles at: that of the gradient of a batch of the student's size,
    g² + var / batch, var the variance between samples. b1 and b2 do not enter: moments are bias-corrected.
    """

    kind: ClassVar[str] = "adam_update"

    def first_step(self, student: AtStart, data: Array, null: Array) -> Step:
        (on_data, size), (on_null, size_null) = map(self._moments, student.sample_gradients(data, null))
        return Step(on_null / size_null - on_data / size, lambda vector: vector / size)

    def _moments(self, each: Array) -> tuple[Array, Array]:
        """g and √v + ε, both (d,), from the gradients of samples (n, d)."""
        mean = each.mean(axis=0)
        spread = jnp.mean((each - mean) ** 2, axis=0)
        return mean, jnp.sqrt(mean**2 + spread / self.train.batch) + self.train.eps
