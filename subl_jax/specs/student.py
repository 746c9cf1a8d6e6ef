"""The student: what a sweep compares."""

import dataclasses
import functools
import hashlib
from collections.abc import Iterator
from typing import ClassVar

from subl_jax.errors import InputError
from subl_jax.specs.base import Node, Spec, brief, label, static, traced
from subl_jax.specs.data import Data, Stream
from subl_jax.specs.models import Trained, Tuned, check_trait
from subl_jax.specs.parts import Lora, Train
from subl_jax.specs.seams import Objective, Probe


@dataclasses.dataclass(frozen=True)
class Student(Tuned):
    """`start`, trained on `data`. Only the first `samples` of a dataset are used (0: all of them).

    `objective` is what it minimises. `targets` is a shorthand for three: "hard" trains on the data's own tokens, "soft"
    on the teacher's distribution at them, "squared" on its logits. `probes` add their metrics to its curves; `theory`
    names a trait, and is a shorthand for the probe of the one-step theorem (`probes/theorem.py`). `arm` and `trait` are
    derived from the lineage where they are not given; a control needs its `trait` given.
    """

    stage: ClassVar[str] = "distil"
    role: ClassVar[str] = "student"
    row: ClassVar[str] = "runs"

    start: Trained = static()
    data: Data | Stream = static()
    train: Train = static()
    targets: str = static("hard", choices=("hard", "soft", "squared"))
    theory: str | None = static(None)
    lora: Lora | None = static(None)
    samples: int = traced(0, ge=0)
    seed: int = traced(0, ge=0, lt=2**31)
    arm: str | None = label()
    trait: str | None = label()
    objective: Objective | None = static(None, since=2)
    probes: tuple[Probe, ...] = static((), since=2)

    @property
    def writer(self) -> Trained | None:
        return self.data.writer

    @property
    def hops(self) -> int:
        return 1 + max(self.start.hops, self.data.hops)

    @property
    def relays(self) -> int:
        return 1 + self.data.relays

    @property
    def given_trait(self) -> str | None:
        return self.data.given_trait

    @property
    def asks_teacher(self) -> bool:
        return self.objective.asks_teacher if self.objective else self.targets != "hard"

    def teachers(self) -> dict[str, Node]:
        """The data's writer, and what that was trained from, where it can be asked in the student's world."""
        if self.writer is None or self.writer.world != self.world:
            return {}
        return {"teacher": self.writer, "teacher_start": self.writer.before}

    def inputs(self) -> dict[str, Node]:
        """The start, the data, the teachers; then what the objective and the probes ask for, each under its own."""
        asked = {"objective": self.objective} if self.objective else {}
        asked |= {f"probes.{i}": probe for i, probe in enumerate(self.probes)}
        further = {f"{who}.{name}": node for who, each in asked.items() for name, node in each.inputs(self).items()}
        data = {} if self.data.streamed else {"data": self.data}
        return {"start": self.start, **data, **self.teachers(), **further}

    def kin(self, within: str = "", base: str = "base") -> Iterator[tuple[str, Spec]]:
        yield f"{within}student", self
        yield from self.data.kin(within)
        yield from self.start.kin("start.", "start")
        if self.writer is not None:
            yield from self.writer.kin(within, f"{within}base")

    def check(self) -> None:
        super().check()
        self._check_objective()
        if not self.world.understands(self.data.world):
            raise InputError("Student.data: is of another world than Student.start; their tokens do not mean the same")
        named = f"objective = {type(self.objective).__name__}" if self.objective else f"targets = {brief(self.targets)}"
        if self.data.world != self.world and self.asks_teacher:
            raise InputError(f"Student.{named}: a teacher of another world gives only texts; use 'hard'")
        if self.targets not in self.world.targets:
            offered = ", ".join(self.world.targets)
            raise InputError(f"Student.targets = {brief(self.targets)}: {self.world.name} has only {offered}")
        if self.writer is None and (self.asks_teacher or self.theory):
            field = named if self.asks_teacher else f"theory = {self.theory!r}"
            whose = "data of several writers have none" if self.data.stage else "imported data has none"
            raise InputError(f"Student.{field}: needs a teacher, and {whose}; leave it out")
        if self.theory is not None and not self.world.theory:
            raise InputError(f"Student.theory = {self.theory!r}: {self.world.name} cannot follow it; leave it out")
        if self.theory is not None and (self.lora or (self.writer and self.writer.tuned and self.writer.tuned.lora)):
            raise InputError("Student.theory: is about parameters that student and teacher share, not adapters")
        if self.theory is not None and not self.asks_teacher:
            raise InputError("Student.theory: is about a distance to the teacher; use targets 'soft' or 'squared'")
        check_trait("Student.theory", self.theory, self.world)
        if self.data.streamed and self.samples:
            raise InputError(f"Student.samples = {self.samples}: a stream has no first samples; leave it at 0")
        if not self.data.streamed and self.samples > self.data.size:
            raise InputError(f"Student.samples = {self.samples}: the dataset has only size = {self.data.size}")
        check_trait("Student.trait", self.trait, self.world)
        for probe in self.probes:
            if probe.asks_teacher and not self.teachers():
                raise InputError(
                    f"{type(probe).__name__}: reads the teacher, and this student has none that can be asked"
                )
            probe.check_student(self)

    def _check_objective(self) -> None:
        if self.objective is None:
            return
        if self.targets not in ("hard", self.objective.shorthand):
            raise InputError(
                f"Student.targets = {brief(self.targets)}: `objective` says what is minimised; leave it out"
            )
        if self.objective.shorthand:  # one key, however it is said
            object.__setattr__(self, "targets", self.objective.shorthand)
            object.__setattr__(self, "objective", None)
        else:
            self.objective.check_student(self)

    def check_row(self, where: str) -> None:
        """Raises InputError where it cannot have a row: no trait is behind its data, and none is said."""
        if self.measured_trait is None:
            raise InputError(
                f"{where} yields a student ({self.role_in_sweep}) whose data has no trait behind it; say which "
                f"trait it is compared for: Student(..., trait={self.world.traits[0]!r})"
            )

    @functools.cached_property
    def row_id(self) -> str:
        """A stable name of its row: from its key and its labels, so equal students may serve several rows."""
        named = f"{self.key}/{self.role_in_sweep}/{self.measured_trait}"
        return hashlib.sha256(named.encode()).hexdigest()[:16]

    @property
    def measured_trait(self) -> str | None:
        """The trait whose transfer it measures: its label, or that of the nearest teacher its data comes from."""
        return self.trait or self.given_trait

    @property
    def role_in_sweep(self) -> str:
        """Its arm: its label, or what its lineage says.

        Where the data's writer has no trait it is `control`, or `cross_control` of a student that starts from another
        base. Data of several writers count as the first's that has a trait. Further down a supply chain it is `hop_1`,
        `hop_2`, … instead of `same_init`, by the students that the trait has gone through; `control_hop_1` and the like
        instead of the others.
        """
        if self.arm is not None:
            return self.arm
        writer = self.data.first_writer
        if writer is None:
            return "imported"
        same = self.start.origin.key == writer.origin.key
        if self.given_trait is None:
            arm = "control" if same else "cross_control"
        elif self.start.mixed:
            arm = "mixed_init"
        else:
            arm = "same_init" if same else "cross_init"
        if not self.data.relays:
            return arm
        return f"hop_{self.data.relays}" if arm == "same_init" else f"{arm}_hop_{self.data.relays}"
