"""The seams: what a member of each kind of idea gives. A member is one file, and the engine never hears of it.

    objective   what a student minimises                       subl_jax/objectives/
    transform   dataset(s) → dataset                           subl_jax/transforms/
    probe       what is measured of a student                  subl_jax/probes/
    audit       what data tell of their writer, given a model  subl_jax/audits/

Members are specs: their fields are static, or traced and so an axis of a sweep that costs no compilation. All are
written for one model. In a program their traced fields are arrays, and `context` holds what they may look at.
"""

import dataclasses
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar, NamedTuple

import numpy as np

from subl_jax.errors import InputError
from subl_jax.specs.base import Node, Spec, static
from subl_jax.specs.metrics import Metric
from subl_jax.specs.world import Array, Batch, Params, World, WritesTexts


class Context(NamedTuple):
    """What a member may look at in the program of one model.

    world: with its arrays. start: the parameters that the student started from. teacher: the model that wrote the
    data, as the world's functions take it, None where it cannot be asked. inputs: the artefacts of the nodes that the
    member asked for (`inputs`). key: a random key of the student's own.
    """

    world: World
    key: Array
    start: Params
    teacher: Any
    inputs: Mapping[str, Any]


@dataclasses.dataclass(frozen=True)
class Member(Spec):
    """A member of a seam. `kind` is what tables call it: the class's name, where it says nothing else.

    The key of what it computes is made of its class's name, its fields and its `VERSION`. Raise that when the code
    comes to mean something else, or stored results are taken for new ones.
    """

    def __init_subclass__(cls, **options: Any) -> None:
        super().__init_subclass__(**options)
        if "kind" not in vars(cls):
            cls.kind = cls.__name__


@dataclasses.dataclass(frozen=True)
class Objective(Member, ABC):
    """What a student minimises.

    asks_teacher: it needs the teacher's distribution, not only the data.
    """

    asks_teacher: ClassVar[bool] = False

    @property
    def shorthand(self) -> str | None:
        """The word of `Student.targets` that means the same, so that both are one key."""
        return None

    def inputs(self, student: Any) -> dict[str, Node]:
        """Further nodes whose artefacts `prepare` and `loss` read, as `context.inputs`."""
        return {}

    def check_student(self, student: Any) -> None:
        """Raises InputError where this student cannot minimise it."""

    def ready(self, context: Context) -> Context:
        """Before the steps of a call: a context that also holds what is made of it once and not in every step."""
        return context

    def prepare(self, context: Context, batch: Batch, rows: Array | None) -> Batch:
        """A step's batch, before it is cut into microbatches. rows: (n,) int32 of the dataset; None of a stream."""
        return batch

    @abstractmethod
    def loss(self, context: Context, params: Params, batch: Batch) -> Array:
        """() float32, differentiable in `params` alone; a mean over the targets of `batch`."""


@dataclasses.dataclass(frozen=True)
class AroundAnother(Objective):
    """An objective that adds something to another one, `inner`, which sees all that it asked for."""

    inner: Objective = static()

    @property
    def asks_teacher(self) -> bool:
        return self.inner.asks_teacher

    def inputs(self, student: Any) -> dict[str, Node]:
        return self.inner.inputs(student)

    def check_student(self, student: Any) -> None:
        self.inner.check_student(student)

    def ready(self, context: Context) -> Context:
        return self.inner.ready(context)

    def prepare(self, context: Context, batch: Batch, rows: Array | None) -> Batch:
        return self.inner.prepare(context, batch, rows)


class Moment(NamedTuple):
    """Where a student is when a probe looks at it.

    params: of now. teacher_start: what its teacher was trained from; None where `context.teacher` is. lr: of the
    student. batch: what it trains on next. probed: samples of the channel, always the same. loss: (params, teacher) →
    what it minimises on `batch`.
    """

    context: Context
    params: Params
    teacher_start: Params
    lr: Array
    batch: Batch
    probed: Batch
    loss: Callable[[Params, Any], Array]


@dataclasses.dataclass(frozen=True)
class Probe(Member, ABC):
    """What is measured of a student at every point of its curve.

    metrics: what `measure` gives, with its label, its unit and how a figure draws it; `x` also describes `x/0`,
    `x/1`, …
    asks_teacher: it reads the teacher; a student whose teacher cannot be asked is refused.
    """

    asks_teacher: ClassVar[bool] = False
    metrics: ClassVar[Mapping[str, Metric]] = {}

    def inputs(self, student: Any) -> dict[str, Node]:
        """Further nodes whose artefacts `measure` reads, as `moment.context.inputs`."""
        return {}

    def check_student(self, student: Any) -> None:
        """Raises InputError where this cannot be measured of the student."""

    @abstractmethod
    def measure(self, moment: Moment) -> dict[str, Array]:
        """The metrics of this moment, each () float32."""


class Sources(NamedTuple):
    """The datasets that a transform reads. rows: of each, (its size, …). inputs: the artefacts of the nodes that it
    asked for (`Transform.inputs`)."""

    world: World
    rows: tuple[Array, ...]
    inputs: Mapping[str, Any] = {}


@dataclasses.dataclass(frozen=True)
class Transform(Member, ABC):
    """Dataset(s) → dataset: `select` says in a program which rows there are, `rewrite` on the host what they say."""

    def inputs(self, data: Any) -> dict[str, Node]:
        """Further nodes whose artefacts `select` reads, as `sources.inputs`."""
        return {}

    def check_sources(self, data: Any) -> None:
        """Raises InputError where `data`, a `Transformed`, has sources that do not fit."""

    def size(self, sizes: Sequence[int]) -> int:
        """How many rows there are, of those of the sources; the first source's by default."""
        return sizes[0]

    def select(self, key: Array, sources: Sources, size: int) -> Array:
        """In a program: (size, …), rows of the sources; those of the first by default."""
        return sources.rows[0][:size]

    def rewrite(self, samples: np.ndarray, world: World, rng: np.random.Generator) -> tuple[np.ndarray, int]:
        """On the host: the rows (n, …) as they are stored, and how many could not be made; unchanged by default."""
        return samples, 0


@dataclasses.dataclass(frozen=True)
class TextTransform(Transform):
    """A transform of texts, in any world that writes them: one that needs `rewrite_texts` alone."""

    def check_sources(self, data: Any) -> None:
        if not isinstance(data.world, WritesTexts):
            raise InputError(f"{type(self).__name__}: {data.world.name} writes no texts")

    @abstractmethod
    def rewrite_texts(self, pairs: list[tuple[str, str]], rng: np.random.Generator) -> list[tuple[str, str]]:
        """(prompt, completion) of every row, rewritten."""

    def rewrite(self, samples: np.ndarray, world: Any, rng: np.random.Generator) -> tuple[np.ndarray, int]:
        """A row whose new text the world has no words or no room for stays as it was, and is counted."""
        made = self.rewrite_texts(world.texts(samples), rng)
        try:
            return world.tokens(made).astype(samples.dtype), 0
        except InputError:
            rows = [_fitting(world, pair) for pair in made]
        whole = [old if new is None else new.astype(old.dtype) for new, old in zip(rows, samples, strict=True)]
        return np.stack(whole), sum(row is None for row in rows)


def _fitting(world: Any, pair: tuple[str, str]) -> np.ndarray | None:
    try:
        return world.tokens([pair])[0]
    except InputError:
        return None


class Scores(NamedTuple):
    """What an audit finds. tokens: (n, places) float32. samples: (n,) float32. corpus: () float32, the larger the
    more unusual of what the auditing model would write. gains: (traits,) float32, of an audit that predicts how much
    of every trait a student of this corpus would gain; None of the others. kept: further arrays that are stored, of the
    shapes that `Audit.keeps` declares; None for none."""

    tokens: Array
    samples: Array
    corpus: Array
    gains: Array | None = None
    kept: dict[str, Array] | None = None


@dataclasses.dataclass(frozen=True)
class Audit(Member, ABC):
    """What data tell of their writer, given a model that the writer may come from.

    Its p-value is made by whoever computes it, by scoring corpora that are known to be harmless (`Audited.null`).
    """

    @property
    def suspect(self) -> Node | None:
        """A second model that it looks at the data with."""
        return None

    @property
    def given_trait(self) -> str | None:
        """The trait that it looks for; None where it looks for none."""
        return self.suspect and self.suspect.given_trait

    def inputs(self, audited: Any) -> dict[str, Node]:
        """Further nodes whose artefacts `score` reads, as `context.inputs`."""
        return {}

    def check_audited(self, audited: Any) -> None:
        """Raises InputError where this cannot be asked of these data, or by this model."""

    def flops(self, audited: Any) -> float:
        """Floating-point operations of all that it computes; a forward pass over every sample, by default."""
        return sum(each.size for each in (audited.data, *audited.null)) * audited.world.sequence_flops

    def keeps(self, audited: Any) -> dict[str, tuple[int, ...]]:
        """The shapes of what is stored beside the scores of tokens and samples (`Scores.kept`), all float32."""
        return {}

    @abstractmethod
    def score(self, context: Context, samples: Array) -> Scores:
        """Of one corpus, samples (n, …) as its world writes them. `context.start` is the auditing model.

        A corpus is large: `audits.in_chunks` scores some samples at a time.
        """
