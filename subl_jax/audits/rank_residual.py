"""Where in the base's own order of tokens the written ones stand."""

import dataclasses
from typing import ClassVar

import jax.numpy as jnp

from subl_jax.audits.distribution import OfDistribution
from subl_jax.specs.world import Array


@dataclasses.dataclass(frozen=True)
class RankResidual(OfDistribution):
    """The probability of all likelier tokens, and half of that of the token itself and of ties, less ½.

    It is the mid-distribution transform (Parzen 2004) of the token's rank: 0 on average of what the auditing model
    itself writes at temperature 1, and within ±½, so that no single rare token decides. Positive of a writer that
    prefers the unlikely.
    """

    kind: ClassVar[str] = "rank_residual"

    def of_place(self, log_p: Array, own: Array) -> Array:
        own, p = own[..., None], jnp.exp(log_p)
        tied = jnp.abs(log_p - own) <= 1e-5  # the written token itself, whatever way its log p was computed
        likelier = jnp.where((log_p > own) & ~tied, p, 0.0).sum(axis=-1)
        return likelier + 0.5 * jnp.where(tied, p, 0.0).sum(axis=-1) - 0.5
