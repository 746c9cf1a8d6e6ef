"""The mean log-likelihood per token: the plainest audit, and what every other one is measured against."""

import dataclasses
from typing import ClassVar

import jax.numpy as jnp

from subl_jax.audits.chunks import in_chunks
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

        def of(chunk: Array) -> Array:
            batch = world.channel_batch(chunk)
            losses, weights = world.written_losses(context.start, None, batch), world.target_weights(batch)
            return jnp.where(weights > 0, losses, jnp.nan)

        tokens = in_chunks(of, samples, self.rows).reshape(len(samples), -1)
        mean = jnp.nanmean(tokens)
        return Scores(tokens, jnp.nanmean(tokens, axis=1), mean if self.unusual == "unlikely" else -mean)
