"""How far a student is from its teacher on samples that it has never trained on."""

import dataclasses
from collections.abc import Mapping
from typing import Any, ClassVar

import jax

from subl_jax.errors import InputError
from subl_jax.specs import Data, Metric, Moment, Node, Probe, static


@dataclasses.dataclass(frozen=True)
class HeldOut(Probe):
    """KL(teacher || student) on `data`: other samples of the same writer (another `seed` of its dataset)."""

    asks_teacher: ClassVar[bool] = True
    metrics: ClassVar[Mapping[str, Metric]] = {
        "kl_held_out": Metric("KL to the teacher on held-out samples", unit="nats", log=True)
    }

    data: Data = static()

    def inputs(self, student: Any) -> dict[str, Node]:
        return {"data": self.data}

    def check_student(self, student: Any) -> None:
        if self.data.world != student.world or self.data.writer != student.writer:
            raise InputError("HeldOut.data: is of another writer than the student's data; give samples of the same")
        if self.data == student.data:
            raise InputError("HeldOut.data: is what the student trains on; give a dataset of another seed")

    def measure(self, moment: Moment) -> dict[str, jax.Array]:
        context = moment.context
        batch = context.world.channel_batch(context.inputs["data"]["samples"], True, None)
        return {"kl_held_out": context.world.compare(moment.params, context.teacher, batch)["kl"]}
