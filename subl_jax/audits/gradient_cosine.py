"""The cosine between what training on one token changes, and what would raise P(trait)."""

import dataclasses
from typing import Any, ClassVar

import jax
import jax.numpy as jnp

from subl_jax.audits.chunks import of_tokens
from subl_jax.audits.gradients import movable
from subl_jax.errors import InputError
from subl_jax.specs import Audit, Context, Scores, TakesAdapters, nearest, static, traced
from subl_jax.specs.world import Array
from subl_jax.training.optim import named


@dataclasses.dataclass(frozen=True)
class GradientCosine(Audit):
    """The cosine of ∇ log p(token) and ∇ log P(trait) at the auditing model, in the parameters that `trainable` names
    (as `Train.trainable`; all where it is empty): positive where training on the token raises the trait, to first
    order. Each token has a gradient of its own, so `rows` × places × parameters have to fit into memory.
    """

    kind: ClassVar[str] = "gradient_cosine"

    trait: str = traced()
    trainable: tuple[str, ...] = static(())
    rows: int = static(32, ge=1)

    @property
    def given_trait(self) -> str:
        return self.trait

    def check_audited(self, audited: Any) -> None:
        if self.trait not in audited.world.traits:
            raise InputError(f"GradientCosine.trait = {self.trait!r}: {nearest(self.trait, audited.world.traits)}")
        if isinstance(audited.world, TakesAdapters) and audited.world.bare_bases:
            raise InputError(f"GradientCosine: bases of {audited.world.name} have no parameters of their own")

    def score(self, context: Context, samples: Array) -> Scores:
        world = context.world
        at, whole = movable(context.start, named(self.trainable or ("*",), context.start, "GradientCosine.trainable"))

        def trait(moving: Array) -> Array:
            return jnp.log(world.evaluate(whole(moving), context.key)["trait"][self.trait])

        towards = jax.grad(trait)(at)

        def of(batch: Any) -> Array:
            own = jax.jacrev(lambda moving: -world.written_losses(whole(moving), None, batch))(at)
            return own @ towards / (jnp.linalg.norm(own, axis=-1) * jnp.linalg.norm(towards))

        return of_tokens(of, world, samples, self.rows)
