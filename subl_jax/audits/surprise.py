"""How much more than the base expects a text surprises it."""

import dataclasses
from typing import ClassVar

from subl_jax.audits.distribution import OfDistribution
from subl_jax.audits.entropy import entropy
from subl_jax.specs.world import Array


@dataclasses.dataclass(frozen=True)
class Surprise(OfDistribution):
    """−log p of the token less the entropy at its place, in nats.

    Of what the auditing model itself writes at temperature 1 this is 0 on average at every place, whatever the prompts:
    positive of a writer with other habits, negative of one that says the likely too often.
    """

    kind: ClassVar[str] = "surprise"

    def of_place(self, log_p: Array, own: Array) -> Array:
        return -own - entropy(log_p)
