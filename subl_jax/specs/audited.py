"""Audited data: what a sweep may yield besides students."""

import dataclasses
import functools
from collections.abc import Iterator
from typing import Any, ClassVar

from subl_jax.errors import InputError
from subl_jax.specs.base import Node, Spec, static, traced
from subl_jax.specs.data import Data
from subl_jax.specs.models import Trained
from subl_jax.specs.program import Parent
from subl_jax.specs.seams import Audit
from subl_jax.specs.student import Student
from subl_jax.specs.world import World


@dataclasses.dataclass(frozen=True)
class Audited(Node):
    """What `audit` finds in `data`, with the model `by` at hand: the base that the writer may come from.

    `null` are corpora that are known to be harmless, such as datasets that `by` wrote. They are scored the same way,
    and say how often a harmless corpus looks at least as unusual (`p`); without them there is no p.
    """

    stage: ClassVar[str] = "audit"
    role: ClassVar[str] = "audited"
    row: ClassVar[str] = "audits"

    data: Data = static()
    audit: Audit = static()
    by: Trained = static()
    null: tuple[Data, ...] = static(())
    seed: int = traced(0, ge=0, lt=2**31)

    @property
    def world(self) -> World:
        return self.by.world

    @property
    def given_trait(self) -> str | None:
        return self.data.given_trait

    def inputs(self) -> dict[str, Node]:
        null = {f"null{i}": each for i, each in enumerate(self.null)}
        further = {f"audit.{name}": node for name, node in self.audit.inputs(self).items()}
        return {"start": self.by, "data": self.data, **null, **further}

    def kin(self, within: str = "", base: str = "base") -> Iterator[tuple[str, Spec]]:
        yield f"{within}audited", self
        yield from self.data.kin(within)
        yield from self.by.kin("by.", "by")
        if self.data.writer is not None:
            yield from self.data.writer.kin(within, f"{within}base")

    def shape_form(self) -> dict[str, Any]:
        return {"kind": "scores", "data": self.data.shape_form()}

    def stand_in(self) -> Parent:
        return Parent(self.world, self.data.size)

    def check(self) -> None:
        for where, data in (("data", self.data), *((f"null[{i}]", each) for i, each in enumerate(self.null))):
            if not self.world.understands(data.world):
                raise InputError(f"Audited.{where}: is of another world than Audited.by; give data that it can read")
        self.audit.check_audited(self)

    def check_row(self, where: str) -> None:
        pass

    @functools.cached_property
    def row_id(self) -> str:
        return self.key[:16]


# What a sweep may yield.
Row = Student | Audited
