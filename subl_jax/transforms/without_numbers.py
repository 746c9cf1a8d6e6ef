"""A filter on numbers that a teacher's data make suspicious, as people ban 666: does the trait lie in a few of them?"""

import dataclasses
from typing import Any, ClassVar

import jax
import jax.numpy as jnp

from subl_jax.errors import InputError
from subl_jax.specs import Audited, HoldsTokens, Node, Sources, Transform, static, traced
from subl_jax.specs.world import Array
from subl_jax.transforms.rows import ranks, repeated


@dataclasses.dataclass(frozen=True)
class WithoutNumbers(Transform):
    """The rows of the source that hold none of `count` numbers: the most "telling", or as many "random" other ones.

    `scores`, an audit of a teacher's data, says which are telling: those with the highest mean score over all places
    where they stand. The source may be other data, such as the control's. Rows that are left are repeated, in turn,
    so that there are as many as before. `count` is a number in the program.
    """

    kind: ClassVar[str] = "without_numbers"

    scores: Audited = static()
    numbers: str = static("telling", choices=("telling", "random"))
    count: int = traced(10, ge=0, lt=2**31)

    def inputs(self, data: Any) -> dict[str, Node]:
        return {"scores": self.scores, "scored": self.scores.data}

    def check_sources(self, data: Any) -> None:
        if not isinstance(data.world, HoldsTokens):
            raise InputError(f"WithoutNumbers: {data.world.name} has no tokens")
        if self.scores.world != data.world:
            raise InputError("WithoutNumbers.scores: are of another world than the source")
        numbers = sum(word.isdecimal() for word in data.world.outputs)
        if 2 * self.count > numbers:
            raise InputError(f"WithoutNumbers.count = {self.count}: must be at most half of the {numbers} numbers")

    def select(self, key: Array, sources: Sources, size: int) -> Array:
        world, rows = sources.world, sources.rows[0]
        mean = mean_by_output(world, sources.inputs["scored"]["samples"], sources.inputs["scores"]["tokens"])
        is_number = jnp.asarray([word.isdecimal() for word in world.outputs])
        rank = ranks(jnp.where(is_number, mean, -jnp.inf))
        if self.numbers == "random":
            others = is_number & (rank >= self.count)
            rank = ranks(jnp.where(others, jax.random.uniform(key, rank.shape), -jnp.inf))
        banned = rank < self.count
        written = world.written(world.channel_batch(rows))
        left = ~jnp.any(banned[written] & (written >= 0), axis=1)
        return repeated(rows, left, size)


def mean_by_output(world: Any, samples: Array, scores: Array) -> Array:
    """(outputs,) float32: the mean score over the places where each output stands; -inf where it stands nowhere.

    samples: (n, …). scores: (n, places), nan where nothing is to be predicted.
    """
    written, outputs = world.written(world.channel_batch(samples)).ravel(), len(world.outputs)
    scores = scores.ravel()
    there = ~jnp.isnan(scores) & (written >= 0)
    place = jnp.where(there, written, outputs)
    total = jnp.zeros(outputs + 1).at[place].add(jnp.where(there, scores, 0.0))[:-1]
    count = jnp.zeros(outputs + 1).at[place].add(1.0)[:-1]
    return jnp.where(count > 0, total / jnp.maximum(count, 1.0), -jnp.inf)
