"""How far a student has moved, adapters counted by what they add to the weights."""

import dataclasses
from collections.abc import Mapping
from typing import Any, ClassVar

import jax
import optax

from subl_jax.errors import InputError
from subl_jax.specs import Metric, Moment, OwnGeometry, Probe


@dataclasses.dataclass(frozen=True)
class Moved(Probe):
    """The Euclidean norm of the student's update, over all parameters of the merged model."""

    metrics: ClassVar[Mapping[str, Metric]] = {"moved": Metric("norm of the update")}

    def check_student(self, student: Any) -> None:
        if isinstance(student.world, OwnGeometry):
            raise InputError(f"Moved: {student.world.name}'s models do not share their parameters; leave it out")

    def measure(self, moment: Moment) -> dict[str, jax.Array]:
        merged = moment.context.world.merged
        return {"moved": optax.tree.norm(optax.tree.sub(merged(moment.params), merged(moment.context.start)))}
