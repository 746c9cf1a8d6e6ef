"""Theorem 1 of Cloud et al. 2025 (arXiv 2507.14805, section 6), as quantities one can compute for any world.

A teacher is its base plus a small step, θ_T = θ_0 + Δ_T. A student that starts from the same θ_0 takes one gradient
step of size lr on the distance to the teacher's outputs, on any inputs. To leading order that step is

    Δ_S = −lr ∇ distil(θ_0; θ_T) = lr G Δ_T,        so        Δ_S · Δ_T = lr Δ_T' G Δ_T ≥ 0,

where G = E[J' H J] is the Gauss-Newton matrix of the distance: J the Jacobian of the outputs at θ_0, H the curvature
of the distance in them (the identity for half a squared error, diag(p) − p p' for a softmax cross-entropy). So the step
goes the teacher's way, and lowers the loss that the teacher's own step lowered. From another start none of this holds.

Everything here is for one model. `distil(params, teacher)` is the distance on one batch, `trait_loss(params)` the loss
the teacher was trained on.
"""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any, ClassVar, NamedTuple

import jax
import jax.numpy as jnp
import optax

from subl_jax.errors import InputError
from subl_jax.specs import Metric, Moment, Probe, static

Params = Any

# Samples on which a trait's own loss is measured.
_TRAIT_BATCH = 512
Distil = Callable[[Params, Params], jax.Array]


class OneStep(NamedTuple):
    """One student step. All are scalars.

    dot: Δ_S · Δ_T. predicted: its leading order, where student and teacher start alike. cosine: of the two moves; nan
    where one is zero. loss_change: of the trait's loss by the student's step.
    """

    dot: jax.Array
    predicted: jax.Array
    cosine: jax.Array
    loss_change: jax.Array


def product(distil: Distil, params: Params, a: Params, b: Params) -> jax.Array:
    """a' G b at `params`."""

    def gradient(student: Params) -> Params:
        return jax.grad(distil)(student, params)

    return optax.tree.vdot(jax.jvp(gradient, (params,), (b,))[1], a)


def curvature(distil: Distil, params: Params, direction: Params) -> jax.Array:
    """direction' G direction at `params`: the second derivative, along `direction`, of the distance to `params`."""
    return product(distil, params, direction, direction)


def cosine(a: Params, b: Params) -> jax.Array:
    """The cosine between two trees as vectors; nan where one of them is zero (a control's teacher has not moved)."""
    return optax.tree.vdot(a, b) / (optax.tree.norm(a) * optax.tree.norm(b))


def one_step(
    distil: Distil,
    trait_loss: Callable[[Params], jax.Array],
    start: Params,
    teacher_start: Params,
    teacher: Params,
    lr: float | jax.Array,
) -> OneStep:
    """What one plain gradient step of a student from `start` does, in the terms of the theorem."""
    direction = optax.tree.sub(teacher, teacher_start)
    step = jax.tree.map(lambda g: -lr * g, jax.grad(distil)(start, teacher))
    after = optax.tree.add(start, step)
    return OneStep(
        dot=optax.tree.vdot(step, direction),
        predicted=lr * curvature(distil, start, direction),
        cosine=cosine(step, direction),
        loss_change=trait_loss(after) - trait_loss(start),
    )


def along_a_run(
    distil: Distil,
    trait_loss: Callable[[Params], jax.Array],
    params: Params,
    start: Params,
    teacher_start: Params,
    teacher: Params,
    lr: jax.Array,
) -> dict[str, jax.Array]:
    """The theorem's quantities for a student that is at `params` now.

    Returns:
      dot: of the student's and the teacher's whole moves. predicted: that of a plain next step of size `lr` and the
      teacher's move, to leading order, lr Δ_T' G (θ_T − θ); at the start lr Δ_T' G Δ_T. trait_loss: the trait's loss
      of the student. gradient_cosine: between the gradients of what the student minimises and of the trait's loss;
      positive where its next step lowers the trait's loss.
    """
    direction = optax.tree.sub(teacher, teacher_start)
    value, trait_gradient = jax.value_and_grad(trait_loss)(params)
    return {
        "dot": optax.tree.vdot(optax.tree.sub(params, start), direction),
        "predicted": lr * product(distil, params, direction, optax.tree.sub(teacher, params)),
        "trait_loss": value,
        "gradient_cosine": cosine(jax.grad(distil)(params, teacher), trait_gradient),
    }


@dataclasses.dataclass(frozen=True)
class Theorem(Probe):
    """The quantities of `along_a_run` for one trait, on the batch that the student trains on next."""

    kind: ClassVar[str] = "theorem"
    asks_teacher: ClassVar[bool] = True
    metrics: ClassVar[Mapping[str, Metric]] = {
        "dot": Metric("Δ_S · Δ_T", drawn="none"),
        "predicted": Metric("predicted Δ_S · Δ_T", drawn="none"),
        "trait_loss": Metric("the trait's own loss", unit="nats", drawn="none"),
        "gradient_cosine": Metric("cosine of own and trait gradient", zero=True),
    }

    trait: str = static()

    def check_student(self, student: Any) -> None:
        if not student.world.theory:
            raise InputError(f"Theorem: {student.world.name} cannot follow it; leave it out")
        if student.lora is not None or student.writer.tuned and student.writer.tuned.lora:
            raise InputError("Theorem: is about parameters that student and teacher share, not adapters; leave it out")
        if not student.asks_teacher:
            raise InputError("Theorem: is about a distance to the teacher; use an objective that asks it, such as Soft")
        if self.trait not in student.world.traits:
            raise InputError(f"Theorem.trait = {self.trait!r}: one of {', '.join(student.world.traits)}")

    def measure(self, moment: Moment) -> dict[str, jax.Array]:
        context, world = moment.context, moment.context.world
        trait = jnp.int32(world.traits.index(self.trait))
        trait_batch = world.trait_batch(context.key, jnp.int32(0), trait, _TRAIT_BATCH)
        return along_a_run(
            moment.loss,
            lambda student: world.loss(student, trait_batch),
            moment.params,
            context.start,
            moment.teacher_start,
            context.teacher,
            moment.lr,
        )
