"""Every sample's score vector: how training on it alone would move the auditing model. What Rao's test is made of."""

import dataclasses
from typing import Any, ClassVar

import jax
import jax.numpy as jnp

from subl_jax.audits.gradients import AtStart
from subl_jax.audits.prediction import of_corpus
from subl_jax.objectives import SHORTHANDS
from subl_jax.specs import Audit, Context, Lora, Scores, Train, static
from subl_jax.specs.world import Array


@dataclasses.dataclass(frozen=True)
class ScoreVectors(Audit):
    """∇ log p(sample) at the auditing model, a sum over its tokens, in the parameters that `train` and `lora` train.

    Kept are `vectors` (n, dims) and, with `directions`, the gradients (traits, dims) of log P of every trait in the
    same coordinates, so that statistics over corpora can be made later and at will (`subl_jax.statistics`). Where more
    than `dims` numbers train, both are a count sketch of that many (Charikar, Chen and Farach-Colton 2002): every
    number is added, with a random sign, to a random coordinate. Inner products are kept on average, with a relative
    error of about dims^-½. Where fewer train, the rest is 0.

    The score of the corpus is the length of the mean vector. Tokens and samples have none.
    """

    kind: ClassVar[str] = "score_vectors"

    train: Train = static()
    lora: Lora | None = static(None)
    directions: bool = static(False)
    dims: int = static(256, ge=1)
    chunk: int = static(32, ge=1)

    def keeps(self, audited: Any) -> dict[str, tuple[int, ...]]:
        directions = {"directions": (len(audited.world.traits), self.dims)} if self.directions else {}
        return {"vectors": (audited.data.size, self.dims), **directions}

    def flops(self, audited: Any) -> float:
        """Forward and backward over every sample; the few questions behind P(trait) are left out."""
        return 3 * audited.data.size * audited.world.sequence_flops

    def at_start(self, context: Context) -> AtStart:
        # Not the node's own key: adapters have to be the same for all corpora.
        context = context._replace(key=jax.random.key(0))
        return AtStart.of(context, self.train, self.lora, SHORTHANDS["hard"], self.chunk)

    def score(self, context: Context, samples: Array) -> Scores:
        student = self.at_start(context)
        sketch = Sketch.of(len(student.at), self.dims)
        kept = {"vectors": student.scores(samples, sketch.of_vector)}
        if self.directions:
            traits = jnp.arange(len(context.world.traits))
            kept["directions"] = jax.lax.map(lambda trait: sketch.of_vector(student.trait_gradient(trait)), traits)
        corpus = jnp.linalg.norm(kept["vectors"].mean(axis=0))
        return of_corpus(context, samples, corpus)._replace(kept=kept)


@dataclasses.dataclass(frozen=True)
class Sketch:
    """A linear map of d numbers to k, always the same for the same d and k. signs, places: (d,); k: `dims`."""

    signs: Array
    places: Array
    dims: int

    @classmethod
    def of(cls, numbers: int, dims: int) -> "Sketch":
        if numbers <= dims:
            return cls(jnp.ones(numbers), jnp.arange(numbers), dims)
        sign_key, place_key = jax.random.split(jax.random.key(numbers))
        signs = jax.random.rademacher(sign_key, (numbers,), jnp.float32)
        return cls(signs, jax.random.randint(place_key, (numbers,), 0, dims), dims)

    def of_vector(self, vector: Array) -> Array:
        """(d,) → (k,)."""
        return jnp.zeros(self.dims).at[self.places].add(self.signs * vector)

    def back(self, direction: Array) -> Array:
        """(k,) → (d,), the adjoint: what gives a vector the same product as its sketch has with `direction`."""
        return self.signs * direction[self.places]
