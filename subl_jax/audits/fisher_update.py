"""A first update that is preconditioned by the Fisher matrix: a step in what the model says, not in its parameters."""

import dataclasses
from typing import ClassVar

import jax
import jax.numpy as jnp

from subl_jax.audits.gradients import AtStart
from subl_jax.audits.prediction import FirstStep, Step
from subl_jax.specs import static
from subl_jax.specs.world import Array


@dataclasses.dataclass(frozen=True)
class FisherUpdate(FirstStep):
    """−J (F + λ I)⁻¹ (g_data − g_null), F the mean of g g' over samples of the null corpus, λ = `ridge` · mean(diag F).

    Directions that the base's own samples vary in anyway count less: chance moves every corpus along them. It is the
    natural gradient (Amari 1998) with a ridge.
    """

    kind: ClassVar[str] = "fisher_update"

    ridge: float = static(1.0, gt=0.0)

    def first_step(self, student: AtStart, data: Array, null: Array) -> Step:
        on_data, each = student.sample_gradients(data, null)
        difference = each.mean(axis=0) - on_data.mean(axis=0)

        def scale(vector: Array) -> Array:
            return solved(each, vector, self.ridge)

        return Step(scale(difference), scale)


def solved(each: Array, vector: Array, ridge: float) -> Array:
    """(F + λ I)⁻¹ vector, F = each' each / m, λ = ridge · mean(diag F). each: (m, d), vector: (d,).

    Where d is larger than m the system of the m samples is solved instead, which gives the same.
    """
    m, d = each.shape
    # A corpus without any gradient leaves the vector as it is, up to a factor.
    least = jnp.maximum(ridge * jnp.mean(each**2), 1e-30)
    if d <= m:
        return jax.scipy.linalg.solve(each.T @ each / m + least * jnp.eye(d), vector, assume_a="pos")
    inner = jax.scipy.linalg.solve(each @ each.T / m + least * jnp.eye(m), each @ vector / m, assume_a="pos")
    return (vector - each.T @ inner) / least
