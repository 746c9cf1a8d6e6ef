"""With a teacher at hand: how much of what it has learnt can its data see?"""

import dataclasses
from typing import ClassVar

from subl_jax.audits.direction_cosine import WithTeacher
from subl_jax.audits.fisher_update import solved
from subl_jax.audits.prediction import of_corpus
from subl_jax.specs import Context, Scores, static
from subl_jax.specs.world import Array


@dataclasses.dataclass(frozen=True)
class Coverage(WithTeacher):
    """Δ' F (F + λ I)⁻¹ Δ / |Δ|²: the part of the writer's displacement Δ along which samples of the data vary.

    F is the mean of g g' over samples of the data, at the base; λ = `ridge` · mean(diag F). It is between 0, where
    no sample's likelihood depends on what the writer changed, and 1; nan where the writer has not moved.
    """

    kind: ClassVar[str] = "coverage"

    ridge: float = static(1.0, gt=0.0)

    def score(self, context: Context, samples: Array) -> Scores:
        (each,) = self.at_start(context).sample_gradients(self.read(samples))
        moved = self.displacement(context)
        seen = each.T @ (each @ solved(each, moved, self.ridge)) / len(each)
        return of_corpus(context, samples, moved @ seen / (moved @ moved))
