"""From audit to defence: a dataset without the samples that an audit finds most suspicious."""

import dataclasses
from typing import Any, ClassVar

import jax
import jax.numpy as jnp

from subl_jax.errors import InputError
from subl_jax.specs import Audited, Node, Sources, Transform, static, traced
from subl_jax.specs.world import Array
from subl_jax.transforms.rows import ranks, repeated


@dataclasses.dataclass(frozen=True)
class WithoutSuspicious(Transform):
    """The source without a `share` of its samples; what is left is repeated in turn, so that there are as many.

    `found`, an audit of the source that scores samples (`audits.Towards`, say), says which go: those with the
    "highest" scores, the "lowest", or "random" ones. A choice of samples is a signal itself: make it of data without a
    trait as well. `share` is a number in the program.
    """

    kind: ClassVar[str] = "without_suspicious"

    found: Audited = static()
    share: float = traced(0.25, ge=0.0, lt=1.0)
    gone: str = static("highest", choices=("highest", "lowest", "random"))

    def inputs(self, data: Any) -> dict[str, Node]:
        return {"found": self.found}

    def check_sources(self, data: Any) -> None:
        if self.found.data != data.sources[0]:
            raise InputError("WithoutSuspicious.found: is an audit of other data than the source")

    def select(self, key: Array, sources: Sources, size: int) -> Array:
        rows, scores = sources.rows[0], sources.inputs["found"]["samples"]
        if self.gone == "random":
            scores = jax.random.uniform(key, scores.shape)
        scores = jnp.nan_to_num(-scores if self.gone == "lowest" else scores, nan=-jnp.inf)
        return repeated(rows, ranks(scores) >= jnp.round(self.share * len(rows)), size)
