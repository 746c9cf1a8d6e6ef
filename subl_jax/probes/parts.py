"""Where in its parameters a model holds a trait: its update in one part alone, and without that part."""

import dataclasses
from collections.abc import Mapping
from typing import Any, ClassVar

import jax

from subl_jax.errors import InputError
from subl_jax.specs import Metric, Moment, OwnGeometry, Probe, nearest, static, traced
from subl_jax.training import optim


@dataclasses.dataclass(frozen=True)
class Parts(Probe):
    """P(trait) of the start with a part of the student's update alone, and with all of the update but this part; and
    the same of the teacher's update. A part is a path pattern of parameters, as in `Train.trainable`; metrics number
    the parts from 0."""

    asks_teacher: ClassVar[bool] = True
    metrics: ClassVar[Mapping[str, Metric]] = {
        "only": Metric("P(trait) with one part of the student's update alone", drawn="end"),
        "without": Metric("P(trait) without one part of the student's update", drawn="end"),
        "teacher_only": Metric("P(trait) with one part of the teacher's update alone", drawn="end"),
        "teacher_without": Metric("P(trait) without one part of the teacher's update", drawn="end"),
    }

    parts: tuple[str, ...] = static()
    trait: str = traced()

    def check_student(self, student: Any) -> None:
        if self.trait not in student.world.traits:
            raise InputError(f"Parts.trait = {self.trait!r}: {nearest(self.trait, student.world.traits)}")
        if isinstance(student.world, OwnGeometry):
            raise InputError(f"Parts: {student.world.name}'s models do not share their parameters; leave it out")

    def measure(self, moment: Moment) -> dict[str, jax.Array]:
        context, world = moment.context, moment.context.world
        pairs = {
            "": (context.start, moment.params),
            "teacher_": (moment.teacher_start, context.teacher),
        }
        found = {}
        for who, models in pairs.items():
            before, after = map(world.merged, models)
            for i, pattern in enumerate(self.parts):
                inside = optim.named((pattern,), before, "Parts.parts")
                for name, (there, elsewhere) in {"only": (after, before), "without": (before, after)}.items():
                    mixed = jax.tree.map(lambda this, x, y: x if this else y, inside, there, elsewhere)
                    found[f"{who}{name}/{i}"] = world.evaluate(mixed, context.key)["trait"][self.trait]
        return found
