"""Which samples and tokens carry the evidence that an audit by score vectors has found."""

import dataclasses
from typing import Any, ClassVar

import jax
import jax.numpy as jnp

from subl_jax.audits.score_vectors import ScoreVectors, Sketch
from subl_jax.errors import InputError
from subl_jax.specs import Audit, Audited, Context, Node, Scores, static
from subl_jax.specs.world import Array
from subl_jax.statistics.score_test import RIDGE


@dataclasses.dataclass(frozen=True)
class Towards(Audit):
    """How far each sample, and each of its tokens, points where the corpus as a whole does.

    `found` is `vectors` of this corpus, `null` the same of the base's own samples, with directions.
    `direction`: "trait", the one that the corpus points to most; or "deviation", wherever its mean is from the base's.
    A sample's score is its shift along it, in standard deviations of the base's own samples; those of its tokens add up
    to that, but for what the base's samples have on average.
    """

    kind: ClassVar[str] = "towards"

    vectors: ScoreVectors = static()
    found: Audited = static()
    null: Audited = static()
    direction: str = static("trait", choices=("trait", "deviation"))
    ridge: float = static(RIDGE, gt=0.0)

    def inputs(self, audited: Any) -> dict[str, Node]:
        return {"found": self.found, "null": self.null}

    def check_audited(self, audited: Any) -> None:
        if self.found.data != audited.data:
            raise InputError("Towards.found: is an audit of other data")
        if self.found.audit != self.vectors:
            raise InputError("Towards.found: is another audit than vectors")
        if self.null.audit != dataclasses.replace(self.vectors, directions=True):
            raise InputError("Towards.null: is another audit than vectors, with directions=True")

    def flops(self, audited: Any) -> float:
        """A derivative along a direction: two backward passes, the second through the first."""
        return 6 * audited.data.size * audited.world.sequence_flops

    def score(self, context: Context, samples: Array) -> Scores:
        null, found = context.inputs["null"], context.inputs["found"]["vectors"]
        center, lower = _whitening(null["vectors"], self.ridge)

        def white(vectors: Array) -> Array:
            return jax.scipy.linalg.solve_triangular(lower, vectors.T, lower=True).T

        mean = white((found.mean(axis=0) - center)[None])[0]
        unit = mean
        if self.direction == "trait":
            units = white(null["directions"])
            units = units / jnp.maximum(jnp.linalg.norm(units, axis=1, keepdims=True), 1e-30)
            unit = units[jnp.argmax(units @ mean)]
        unit = unit / jnp.maximum(jnp.linalg.norm(unit), 1e-30)
        # unit' L⁻¹ v = (L'⁻¹ unit)' v
        direction = jax.scipy.linalg.solve_triangular(lower.T, unit, lower=False)
        # Of the base's own samples the shift has a deviation of 1, which the ridge alone would make less.
        direction = direction / jnp.maximum(jnp.std((null["vectors"] - center) @ direction), 1e-30)
        student = self.vectors.at_start(context)
        step = Sketch.of(len(student.at), len(direction)).back(direction)
        tokens = student.token_rates(samples, step)
        shifts = (found - center) @ direction
        return Scores(tokens, shifts, shifts.mean())


def _whitening(vectors: Array, ridge: float) -> tuple[Array, Array]:
    """(d,) the mean of (n, d), and L (d, d) with L L' their covariance plus a ridge, as `statistics.score_test`."""
    center = vectors.mean(axis=0)
    apart = vectors - center
    covariance = apart.T @ apart / max(len(vectors) - 1, 1)
    diagonal = jnp.diag(covariance)
    least = ridge * diagonal.sum() / jnp.maximum((diagonal > 0).sum(), 1)
    return center, jnp.linalg.cholesky(covariance + jnp.maximum(least, 1e-30) * jnp.eye(len(center)))
