"""With a teacher at hand: does the first step on its data go where the teacher has gone?"""

import dataclasses
from typing import Any, ClassVar

import jax.numpy as jnp

from subl_jax.audits.gradients import AtStart, movable
from subl_jax.audits.prediction import Cost, Prediction, of_corpus
from subl_jax.errors import InputError
from subl_jax.specs import Context, Node, Scores
from subl_jax.specs.world import Array
from subl_jax.training import optim


@dataclasses.dataclass(frozen=True)
class WithTeacher(Prediction):
    """A number for a dataset from its writer's displacement, in what the student trains. It ranks no traits."""

    def inputs(self, audited: Any) -> dict[str, Node]:
        writer = audited.data.writer
        if writer is None or writer.world != audited.world or writer.told:
            raise InputError(f"{type(self).__name__}: needs data whose writer was trained, in the same world")
        return {**super().inputs(audited), "writer": writer, "writer_start": writer.before}

    def displacement(self, context: Context) -> Array:
        """(d,): what the writer was moved by, in the parameters that the student trains."""
        world = context.world

        def trained(who: str) -> Array:
            params = world.trainable(context.inputs[who]["params"], context.key, self.lora)
            return movable(params, optim.trained(self.train, params, world.frozen))[0]

        return trained("writer") - trained("writer_start")

    def cost(self, audited: Any) -> Cost:
        """Forward and backward over both corpora."""
        data, null = self.sizes(audited)
        return Cost(3 * data * audited.world.sequence_flops, 3 * null * audited.world.sequence_flops)


@dataclasses.dataclass(frozen=True)
class DirectionCosine(WithTeacher):
    """The cosine between −(g_data − g_null) and the writer's displacement; nan where the writer has not moved."""

    kind: ClassVar[str] = "direction_cosine"

    def score(self, context: Context, samples: Array) -> Scores:
        student: AtStart = self.at_start(context)
        null = context.inputs["null"]["samples"][: self.null_rows]
        on_data, on_null = student.gradients(self.read(samples), null)
        step, moved = on_null - on_data, self.displacement(context)
        cosine = step @ moved / (jnp.linalg.norm(step) * jnp.linalg.norm(moved))
        return of_corpus(context, samples, cosine)
