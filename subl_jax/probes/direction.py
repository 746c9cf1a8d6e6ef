"""Directions of a trait: where teacher and student have moved to, in the residual stream and in parameters.

The teacher's vector at a layer is the mean over the channel's samples of the residual stream of the teacher, minus that
of the model it was trained from; the student's vector is that of the student minus its start. Both read the same
samples, at the places where a number, a separator or the end is predicted.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import optax

from subl_jax.errors import InputError
from subl_jax.specs import Metric, Moment, Probe, ReadsResiduals, Steered, nearest, static, traced


def vector(moment: Moment, model: Any, before: Any) -> jax.Array:
    """(layers, width) float32: how far `model` is from `before` in the mean over the moment's probed samples."""
    world, weights = moment.context.world, moment.context.world.target_weights(moment.probed)
    moved = world.residuals(model, moment.probed) - world.residuals(before, moment.probed)
    return jnp.einsum("lnpw,np->lw", moved, weights) / jnp.maximum(weights.sum(), 1.0)


def steer(model: Any, added: jax.Array) -> Steered:
    """The model with `added` (layers, width) added after its layers, also where something is added already."""
    return Steered(model.params, model.added + added) if isinstance(model, Steered) else Steered(model, added)


def without(update: Any, direction: Any) -> Any:
    """`update` without its part along `direction`, of two trees as vectors; unchanged where the direction is zero."""
    length = optax.tree.vdot(direction, direction)
    share = jnp.where(length > 0, optax.tree.vdot(update, direction) / jnp.maximum(length, 1e-30), 0.0)
    return jax.tree.map(lambda u, d: u - share * d, update, direction)


class _OfResiduals(Probe):
    """A probe of the residual stream."""

    asks_teacher: ClassVar[bool] = True

    def check_student(self, student: Any) -> None:
        if not isinstance(student.world, ReadsResiduals) or not student.world.residual_layers:
            raise InputError(f"{type(self).__name__}: {student.world.name} has no residual stream that can be read")
        self.check_layers(student.world.residual_layers)

    def check_layers(self, layers: int) -> None:
        """Raises InputError where it asks for a layer that is not there."""


@dataclasses.dataclass(frozen=True)
class Direction(_OfResiduals):
    """The student's vector against the teacher's at each of `layers`: their cosine, and the ratio of their norms."""

    layers: tuple[int, ...] = static()

    @property
    def metrics(self) -> Mapping[str, Metric]:  # a name for each layer
        kinds = {
            "residual_cosine": Metric("cosine of student's and teacher's residual vector", zero=True, drawn="end"),
            "residual_norm": Metric("norm of the student's residual vector over the teacher's", drawn="end"),
        }
        return {f"{kind}/{layer}": metric for kind, metric in kinds.items() for layer in self.layers}

    def check_layers(self, layers: int) -> None:
        for layer in self.layers:
            if not 0 <= layer < layers:
                raise InputError(f"Direction.layers: {layer}: the model has {layers} layers, counted from 0")

    def measure(self, moment: Moment) -> dict[str, jax.Array]:
        teacher = vector(moment, moment.context.teacher, moment.teacher_start)
        student = vector(moment, moment.params, moment.context.start)
        of_teacher, of_student = (jnp.linalg.norm(x, axis=1) for x in (teacher, student))
        cosines = jnp.sum(teacher * student, axis=1) / (of_teacher * of_student)
        found = {"residual_cosine": cosines, "residual_norm": of_student / of_teacher}
        return {f"{name}/{layer}": values[layer] for name, values in found.items() for layer in self.layers}


@dataclasses.dataclass(frozen=True)
class _OfOneLayer(_OfResiduals):
    """A probe that asks for P of one trait, with one layer of the residual stream changed."""

    trait: str = traced()
    layer: int = traced(0, ge=0, lt=2**31)

    def check_student(self, student: Any) -> None:
        super().check_student(student)
        if self.trait not in student.world.traits:
            raise InputError(
                f"{type(self).__name__}.trait = {self.trait!r}: {nearest(self.trait, student.world.traits)}"
            )

    def check_layers(self, layers: int) -> None:
        if self.layer >= layers:
            where = f"{type(self).__name__}.layer = {self.layer}"
            raise InputError(f"{where}: the model has {layers} layers, counted from 0")

    def chance(self, moment: Moment, params: Any, added: jax.Array) -> jax.Array:
        """P(trait) of `params` with the row of this layer of `added` (layers, width) added after it."""
        own = jnp.arange(len(added))[:, None] == self.layer
        model = steer(params, jnp.where(own, added, 0.0))
        return moment.context.world.evaluate(model, moment.context.key)["trait"][self.trait]


@dataclasses.dataclass(frozen=True)
class Patched(_OfOneLayer):
    """P(trait) of the student's start with `scale` times the teacher's vector added after `layer`.

    It does not depend on the student's training: all its points are alike.
    """

    metrics: ClassVar[Mapping[str, Metric]] = {
        "patched": Metric("P(trait) of the start with the teacher's vector added", drawn="end")
    }

    scale: float = traced(1.0)

    def measure(self, moment: Moment) -> dict[str, jax.Array]:
        added = self.scale * vector(moment, moment.context.teacher, moment.teacher_start)
        return {"patched": self.chance(moment, moment.context.start, added)}


@dataclasses.dataclass(frozen=True)
class WithoutVector(_OfOneLayer):
    """P(trait) of the student where its vector's part along the teacher's is taken away after `layer`."""

    metrics: ClassVar[Mapping[str, Metric]] = {
        "without_vector": Metric("P(trait) without the teacher's vector in the residual stream")
    }

    def measure(self, moment: Moment) -> dict[str, jax.Array]:
        teacher = vector(moment, moment.context.teacher, moment.teacher_start)
        student = vector(moment, moment.params, moment.context.start)
        return {"without_vector": self.chance(moment, moment.params, jax.vmap(without)(student, teacher) - student)}


@dataclasses.dataclass(frozen=True)
class WithoutTeacher(Probe):
    """What is left of a student's trait if the teacher's own step is projected out of its update, in parameters.

    `without_step` is P(trait) of start + update − its part along the teacher's step; `along_step` is that part's share
    of the teacher's step.
    """

    asks_teacher: ClassVar[bool] = True
    metrics: ClassVar[Mapping[str, Metric]] = {
        "without_step": Metric("P(trait) without the teacher's step in the update"),
        "along_step": Metric("the update's part along the teacher's step", unit="of that step", zero=True),
    }

    trait: str = traced()

    def check_student(self, student: Any) -> None:
        if self.trait not in student.world.traits:
            raise InputError(f"WithoutTeacher.trait = {self.trait!r}: {nearest(self.trait, student.world.traits)}")
        if not student.world.theory:
            raise InputError(
                f"WithoutTeacher: {student.world.name}'s models do not share their parameters; leave it out"
            )

    def measure(self, moment: Moment) -> dict[str, jax.Array]:
        context, world = moment.context, moment.context.world
        start, now, teacher, before = map(
            world.merged, (context.start, moment.params, context.teacher, moment.teacher_start)
        )
        update, step = optax.tree.sub(now, start), optax.tree.sub(teacher, before)
        left = optax.tree.add(start, without(update, step))
        length = optax.tree.vdot(step, step)
        return {
            "without_step": world.evaluate(left, context.key)["trait"][self.trait],
            "along_step": optax.tree.vdot(update, step) / length,
        }
