"""Scores that mean nothing: what every detector of tokens has to be better than."""

import dataclasses
from typing import ClassVar

import jax
import jax.numpy as jnp

from subl_jax.specs import Audit, Context, Scores
from subl_jax.specs.world import Array


@dataclasses.dataclass(frozen=True)
class RandomTokens(Audit):
    """A uniform random number for every token; another `Audited.seed` gives others."""

    kind: ClassVar[str] = "random"

    def score(self, context: Context, samples: Array) -> Scores:
        weights = context.world.target_weights(context.world.channel_batch(samples)).reshape(len(samples), -1)
        tokens = jnp.where(weights > 0, jax.random.uniform(context.key, weights.shape), jnp.nan)
        return Scores(tokens, jnp.nanmean(tokens, axis=1), jnp.nanmean(tokens))
