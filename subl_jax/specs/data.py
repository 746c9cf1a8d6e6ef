"""Data of a sweep: written, imported or transformed and stored; or streamed while a student trains."""

import dataclasses
from abc import ABC, abstractmethod
from collections.abc import Iterator
from typing import Any, ClassVar

from subl_jax.errors import InputError
from subl_jax.specs.base import Node, Spec, host, label, static, traced
from subl_jax.specs.models import Trained
from subl_jax.specs.parts import Sampling
from subl_jax.specs.program import Parent
from subl_jax.specs.seams import Transform
from subl_jax.specs.world import FiltersInProgram, World, WritesTexts


class Written(Spec, ABC):
    """Where a student's samples come from: stored data, or a stream.

    streamed: they are drawn while the student trains.
    """

    streamed: ClassVar[bool] = False

    @property
    @abstractmethod
    def writer(self) -> Trained | None:
        """The model that wrote them; None where that is unknown, or several did."""

    @property
    def given_trait(self) -> str | None:
        """The trait of whoever wrote them."""
        return self.writer and self.writer.given_trait

    @property
    def first_writer(self) -> Trained | None:
        """The writer; of several the first that has a trait, or the first at all."""
        return self.writer

    @property
    def hops(self) -> int:
        """How many students are behind it, one after the other: 0 where a teacher or a base wrote it."""
        return self.writer.hops if self.writer else 0

    @property
    def relays(self) -> int:
        """Of these, how many the trait of its writer has gone through."""
        return self.writer.relays if self.writer else 0

    @property
    @abstractmethod
    def world(self) -> World: ...

    @abstractmethod
    def kin(self, within: str = "", base: str = "base") -> Iterator[tuple[str, Spec]]:
        """The data and what they were made of, without their writers."""


class Data(Written, Node):
    """Stored samples: `size` of them."""

    role: ClassVar[str] = "data"
    size: int

    def kin(self, within: str = "", base: str = "base") -> Iterator[tuple[str, Spec]]:
        yield f"{within}data", self

    def shape_form(self) -> dict[str, Any]:
        return {"kind": "data", "world": self.world.key, "size": self.size}

    def stand_in(self) -> Parent:
        return Parent(self.world, self.size)


def _check_sampling(data: "Dataset | Stream") -> None:
    wanted = data.world.sampling
    if not isinstance(data.sampling, wanted):
        where, given = type(data).__name__, type(data.sampling).__name__
        raise InputError(f"{where}.sampling: a {given}; {data.world.name} is asked by {wanted.__name__}(...)")
    data.world.check_sampling(data.sampling)


@dataclasses.dataclass(frozen=True)
class Dataset(Data):
    """`size` samples that `teacher` wrote and `filter` kept; at most `budget` × `size` are drawn for them."""

    stage: ClassVar[str] = "write"

    teacher: Trained = static()
    size: int = static(ge=1)
    filter: Spec = host()
    sampling: Spec = static(Sampling())
    round: int = static(1024, ge=1)
    budget: float = static(4.0, ge=1.0)
    seed: int = traced(0, ge=0, lt=2**31)

    @property
    def world(self) -> World:
        return self.teacher.world

    @property
    def writer(self) -> Trained:
        return self.teacher

    def inputs(self) -> dict[str, Node]:
        return {"teacher": self.teacher}

    def check(self) -> None:
        if not isinstance(self.world, WritesTexts):
            raise InputError(f"Dataset: {self.world.name} writes no texts to filter and to store; use a Stream")
        _check_sampling(self)


@dataclasses.dataclass(frozen=True)
class Imported(Data):
    """Samples made elsewhere: a JSONL file of {"prompt", "completion"}, identified by its content."""

    stage: ClassVar[str] = ""

    of: World = static()
    sha256: str = host()
    size: int = static(ge=1)
    path: str = label("")

    @property
    def world(self) -> World:
        return self.of

    @property
    def writer(self) -> None:
        return None

    def inputs(self) -> dict[str, Node]:
        return {}


@dataclasses.dataclass(frozen=True)
class Transformed(Data):
    """What `transform` makes of one or several stored datasets, `sources`. Stored like a dataset, text files included.

    Its writer is that of the sources where all have one and the same; else it has none, and only its samples can be
    learnt ("hard"). Its trait is the first that a source's writer has. `size` 0: what the transform says.
    """

    stage: ClassVar[str] = "transform"

    sources: tuple[Data, ...] = static()
    transform: Transform = static()
    size: int = static(0, ge=0)
    seed: int = traced(0, ge=0, lt=2**31)

    @property
    def world(self) -> World:
        return self.sources[0].world

    @property
    def writer(self) -> Trained | None:
        writers = {source.writer.key if source.writer else "": source.writer for source in self.sources}
        return next(iter(writers.values())) if len(writers) == 1 else None

    @property
    def given_trait(self) -> str | None:
        return next((source.given_trait for source in self.sources if source.given_trait), None)

    @property
    def first_writer(self) -> Trained | None:
        found = [source.first_writer for source in self.sources if source.first_writer]
        return next((writer for writer in found if writer.given_trait), found[0] if found else None)

    @property
    def hops(self) -> int:
        return max(source.hops for source in self.sources)

    @property
    def relays(self) -> int:
        return max(source.relays for source in self.sources)

    def inputs(self) -> dict[str, Node]:
        further = {f"transform.{name}": node for name, node in self.transform.inputs(self).items()}
        return {**{f"source{i}": source for i, source in enumerate(self.sources)}, **further}

    def kin(self, within: str = "", base: str = "base") -> Iterator[tuple[str, Spec]]:
        yield f"{within}data", self
        for source in self.sources:
            yield from source.kin(f"{within}source.")

    def check(self) -> None:
        if not self.sources:
            raise InputError("Transformed.sources: is empty; give at least one dataset")
        for source in self.sources:
            if source.world != self.world:
                raise InputError("Transformed.sources: are of several worlds; their samples do not mean the same")
        if not self.size:
            object.__setattr__(self, "size", self.transform.size([source.size for source in self.sources]))
        self.transform.check_sources(self)


@dataclasses.dataclass(frozen=True)
class Stream(Written):
    """Samples of `teacher`, drawn while the student trains; what `filter` rejects carries no loss.

    `distinct` is how many there are, drawn again each epoch from the same keys; 0 is a fresh one every time.
    """

    VERSION: ClassVar[int] = 2  # the toy language's filter keeps what has several line breaks between its numbers
    streamed: ClassVar[bool] = True

    teacher: Trained = static()
    filter: Spec | None = static(None)
    sampling: Spec = static(Sampling())
    distinct: int = traced(0, ge=0, lt=2**30)

    @property
    def world(self) -> World:
        return self.teacher.world

    @property
    def writer(self) -> Trained:
        return self.teacher

    def kin(self, within: str = "", base: str = "base") -> Iterator[tuple[str, Spec]]:
        yield f"{within}data", self

    def check(self) -> None:
        if self.filter is not None and not isinstance(self.world, FiltersInProgram):
            raise InputError(f"Stream.filter: {self.world.name} has nothing to filter; leave it out")
        _check_sampling(self)
