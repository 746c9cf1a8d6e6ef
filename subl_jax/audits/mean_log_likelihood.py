"""The mean log-likelihood per token: the plainest audit, and what every other one is measured against."""

import dataclasses
from typing import ClassVar

from subl_jax.audits.chunks import of_tokens
from subl_jax.specs import Audit, Context, Scores, static
from subl_jax.specs.world import Array


@dataclasses.dataclass(frozen=True)
class MeanLogLikelihood(Audit):
    """−log p of every token under the auditing model, in nats; of a sample and of the corpus the mean over tokens.

    `unusual` says which corpora are: those whose tokens are "unlikely", as of a writer with other habits, or "likely",
    as of one that repeats itself. `rows` samples are scored at a time.
    """

    kind: ClassVar[str] = "mean_log_likelihood"

    unusual: str = static("unlikely", choices=("unlikely", "likely"))
    rows: int = static(256, ge=1)

    def score(self, context: Context, samples: Array) -> Scores:
        world = context.world
        scores = of_tokens(lambda batch: world.written_losses(context.start, None, batch), world, samples, self.rows)
        return scores if self.unusual == "unlikely" else scores._replace(corpus=-scores.corpus)
