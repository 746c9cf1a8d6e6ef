"""What a student of a world minimises, called without a stage around it."""

from typing import Any

import jax

from subl_jax import objectives, specs


def distance(world: specs.World, params: Any, teacher: Any, batch: Any, targets: str | specs.Objective) -> jax.Array:
    """() float32: the loss of an objective, or of the one that `Student.targets` names."""
    objective = objectives.SHORTHANDS[targets] if isinstance(targets, str) else targets
    return objective.loss(specs.Context(world, jax.random.key(0), params, teacher, {}), params, batch)
