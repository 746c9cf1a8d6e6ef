"""Some tokens are gone from the data, as if they had not been written."""

import dataclasses
from typing import Any, ClassVar

from subl_jax.errors import InputError
from subl_jax.objectives.selection import OnTokens
from subl_jax.specs import Audited, Context, HoldsTokens, static, traced
from subl_jax.specs.world import Array, Batch


@dataclasses.dataclass(frozen=True)
class Erased(OnTokens):
    """`inner` on data without the `share` of the tokens with the "top" or the "bottom" scores: what follows moves up.

    A separator stays where its number goes, so that a completion may be no list any more.
    """

    kind: ClassVar[str] = "erased"

    scores: Audited = static()
    tokens: str = static("top", choices=("top", "bottom"))
    share: float = traced(0.1, ge=0.0, le=1.0)

    def check_student(self, student: Any) -> None:
        super().check_student(student)
        if not isinstance(student.world, HoldsTokens):
            raise InputError(f"Erased: {student.world.name} has no tokens to erase")

    def prepare(self, context: Context, batch: Batch, rows: Array | None) -> Batch:
        return context.world.erased(super().prepare(context, batch, rows), context.inputs["chosen"][rows])
