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


@dataclasses.dataclass(frozen=True)
class _AtLayers(Probe):
    """A probe of the residual stream after some layers. It has a metric `<name>/<layer>` for each."""

    asks_teacher: ClassVar[bool] = True

    layers: tuple[int, ...] = static()

    def check_student(self, student: Any) -> None:
        where, world = type(self).__name__, student.world
        if not isinstance(world, ReadsResiduals) or not world.residual_layers:
            raise InputError(f"{where}: {world.name} has no residual stream that can be read")
        for layer in self.layers:
            if not 0 <= layer < world.residual_layers:
                count = world.residual_layers
                raise InputError(f"{where}.layers: {layer}: the model has {count} layers, counted from 0")

    def named(self, **found: jax.Array) -> dict[str, jax.Array]:
        """Metrics from values of all layers, each (layers,)."""
        return {f"{name}/{layer}": values[layer] for name, values in found.items() for layer in self.layers}


@dataclasses.dataclass(frozen=True)
class Direction(_AtLayers):
    """The student's vector against the teacher's: their cosine, and the ratio of their norms."""

    metrics: ClassVar[Mapping[str, Metric]] = {
        "residual_cosine": Metric("cosine of student's and teacher's residual vector", zero=True, drawn="end"),
        "residual_norm": Metric("norm of the student's residual vector over the teacher's", drawn="end"),
    }

    def measure(self, moment: Moment) -> dict[str, jax.Array]:
        teacher = vector(moment, moment.context.teacher, moment.teacher_start)
        student = vector(moment, moment.params, moment.context.start)
        of_teacher, of_student = (jnp.linalg.norm(x, axis=1) for x in (teacher, student))
        cosines = jnp.sum(teacher * student, axis=1) / (of_teacher * of_student)
        return self.named(residual_cosine=cosines, residual_norm=of_student / of_teacher)


@dataclasses.dataclass(frozen=True)
class _Changed(_AtLayers):
    """P of one trait, with one layer of the residual stream changed at a time."""

    trait: str = traced()

    def check_student(self, student: Any) -> None:
        super().check_student(student)
        if self.trait not in student.world.traits:
            where = f"{type(self).__name__}.trait = {self.trait!r}"
            raise InputError(f"{where}: {nearest(self.trait, student.world.traits)}")

    def chances(self, moment: Moment, params: Any, added: jax.Array) -> jax.Array:
        """(layers,): P(trait) of `params` with one row of `added` (layers, width) at a time added after its layer."""

        def chance(alone: jax.Array) -> jax.Array:
            return moment.context.world.evaluate(steer(params, alone), moment.context.key)["trait"][self.trait]

        return jax.lax.map(chance, jnp.eye(len(added))[:, :, None] * added)


@dataclasses.dataclass(frozen=True)
class Patched(_Changed):
    """P(trait) of the student's start with `scale` times the teacher's vector added after a layer.

    It does not depend on the student's training: all its points are alike.
    """

    metrics: ClassVar[Mapping[str, Metric]] = {
        "patched": Metric("P(trait) of the start with the teacher's vector added", drawn="end")
    }

    scale: float = traced(1.0)

    def measure(self, moment: Moment) -> dict[str, jax.Array]:
        added = self.scale * vector(moment, moment.context.teacher, moment.teacher_start)
        return self.named(patched=self.chances(moment, moment.context.start, added))


@dataclasses.dataclass(frozen=True)
class WithoutVector(_Changed):
    """P(trait) of the student where its vector's part along the teacher's is taken away after a layer."""

    metrics: ClassVar[Mapping[str, Metric]] = {
        "without_vector": Metric("P(trait) without the teacher's vector after a layer", drawn="end")
    }

    def measure(self, moment: Moment) -> dict[str, jax.Array]:
        teacher = vector(moment, moment.context.teacher, moment.teacher_start)
        student = vector(moment, moment.params, moment.context.start)
        aside = jax.vmap(without)(student, teacher)
        return self.named(without_vector=self.chances(moment, moment.params, aside - student))


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
