"""The plainest prediction: one gradient step on the data, less one on a null corpus, seen in P of every trait."""

import dataclasses
from typing import ClassVar

from subl_jax.audits.gradients import AtStart
from subl_jax.audits.prediction import FirstStep, Step
from subl_jax.specs.world import Array


@dataclasses.dataclass(frozen=True)
class FirstUpdate(FirstStep):
    """−J · (g_data − g_null): plain gradient descent, to first order and for a rate of 1."""

    kind: ClassVar[str] = "first_update"

    def first_step(self, student: AtStart, data: Array, null: Array) -> Step:
        on_data, on_null = student.gradients(data, null)
        return Step(on_null - on_data, lambda vector: vector)
