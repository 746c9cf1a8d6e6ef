"""Divergence tokens: where teachers of other traits would write something else (Schrodi et al., arXiv 2509.23886)."""

import dataclasses
from typing import Any, ClassVar

import jax
import jax.numpy as jnp

from subl_jax.audits.chunks import of_tokens
from subl_jax.audits.suspected import OfSuspect, check_world
from subl_jax.errors import InputError
from subl_jax.specs import Context, HoldsTokens, Node, Scores, Trained, model_of, static
from subl_jax.specs.world import Array


@dataclasses.dataclass(frozen=True)
class Divergence(OfSuspect):
    """How many of the teachers `others`, of other traits, would not have written this token greedily.

    More than 0 is a divergence token. `model` is the teacher of the data. With `guard` a token that this teacher,
    scored again, would not write greedily itself never counts: of sampled data these are most of the tokens.
    """

    kind: ClassVar[str] = "divergence"

    others: tuple[Trained, ...] = static()
    guard: bool = static(True)
    rows: int = static(256, ge=1)

    def inputs(self, audited: Any) -> dict[str, Node]:
        return {**super().inputs(audited), **{f"other{i}": each for i, each in enumerate(self.others)}}

    def check_audited(self, audited: Any) -> None:
        super().check_audited(audited)
        if not self.others:
            raise InputError("Divergence.others: is empty; give the teachers of other traits")
        for i, other in enumerate(self.others):
            check_world(f"Divergence.others[{i}]", other, audited)
        if not isinstance(audited.world, HoldsTokens):
            raise InputError(f"Divergence: {audited.world.name} has no tokens")

    def score(self, context: Context, samples: Array) -> Scores:
        world = context.world
        others = [model_of(context.inputs[f"other{i}"]) for i in range(len(self.others))]
        teacher = model_of(context.inputs["model"])

        def of(batch: jax.Array) -> jax.Array:
            written = world.written(batch)
            differ = sum((_greedy(world, other, batch) != written).astype(jnp.float32) for other in others)
            return jnp.where(_greedy(world, teacher, batch) == written, differ, 0.0) if self.guard else differ

        return of_tokens(of, world, samples, self.rows)


def _greedy(world: Any, model: Any, batch: Any) -> jax.Array:
    return jnp.argmax(world.log_probs(model, batch), axis=-1)
