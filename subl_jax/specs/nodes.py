"""What to compute: frozen specs that nest by value. Equal specs are one computation.

A spec is a frozen dataclass whose fields each have a role:

    static   changes shapes or the program; decides the group (one compiled program)
    traced   a number inside the program; decides the lane
    host     used on the host only (a filter): part of the identity, not of the program
    label    how a row is presented (arm, trait of a control): not part of the identity

Specs that a stage computes are *nodes* (`Base`, `Teacher`, `Prompted`, `Mix`, `Dataset`, `Student`);
specs that only parameterise them are *parts* (`Train`, `Lora`, a world, a filter, `Stream`).
"""

import collections
import copy
import dataclasses
import difflib
import functools
import hashlib
import importlib
import itertools
import json
import sys
import typing
from collections.abc import Callable, Iterable, Sequence
from typing import Any, ClassVar, NamedTuple, Self

import numpy as np

from subl_jax.errors import InputError


def _field(role: str, default: Any, rules: dict[str, Any]) -> Any:
    return dataclasses.field(default=default, metadata={"role": role, **rules}, compare=role != "label")


def static(default: Any = dataclasses.MISSING, **rules: Any) -> Any:
    """A field that changes the program. Rules: `ge`, `gt`, `le`, `lt`, `choices`."""
    return _field("static", default, rules)


def traced(default: Any = dataclasses.MISSING, **rules: Any) -> Any:
    """A field that is a number in the program, so that lanes of one program may differ in it."""
    return _field("traced", default, rules)


def host(default: Any = dataclasses.MISSING, **rules: Any) -> Any:
    """A field that only the host reads."""
    return _field("host", default, rules)


def label(default: Any = None, **rules: Any) -> Any:
    """A field that names a row and does not change what is computed."""
    return _field("label", default, rules)


_RULES: dict[str, tuple[Callable[[Any, Any], bool], str]] = {
    "ge": (lambda value, bound: value >= bound, "at least"),
    "gt": (lambda value, bound: value > bound, "more than"),
    "le": (lambda value, bound: value <= bound, "at most"),
    "lt": (lambda value, bound: value < bound, "less than"),
    "choices": (lambda value, bound: value in bound, "one of"),
}


class _Check(NamedTuple):
    """How one field is checked: its name in errors, its type, and its rules as (holds, words, bound)."""

    field: str
    where: str
    kind: Any
    rules: tuple[tuple[Callable[[Any, Any], bool], str, Any], ...]


@functools.cache
def _checks(cls: type) -> tuple[_Check, ...]:
    # Once per class: a sweep makes tens of thousands of specs.
    types = typing.get_type_hints(cls)
    return tuple(
        _Check(
            field.name,
            f"{cls.__name__}.{field.name}",
            types[field.name],
            tuple((*_RULES[rule], field.metadata[rule]) for rule in _RULES if rule in field.metadata),
        )
        for field in dataclasses.fields(cls)
    )


def _coerced(where: str, kind: Any, value: Any) -> Any:
    """`value` as the annotated type, so that equal settings are equal specs (1 and 1.0, list and tuple)."""
    given, kinds = value, typing.get_args(kind)
    if isinstance(value, np.generic):
        value = value.item()
    if kind is float:
        fits = isinstance(value, int | float) and not isinstance(value, bool)
    elif kind is int:
        fits = isinstance(value, int) and not isinstance(value, bool)
    elif kind in (bool, str):
        fits = isinstance(value, kind)
    elif typing.get_origin(kind) is tuple:
        fits = isinstance(value, list | tuple)
    else:
        fits = isinstance(value, kind)
    if not fits:
        names = [kind.__name__] if typing.get_origin(kind) is tuple else [k.__name__ for k in kinds or (kind,)]
        shown = "" if isinstance(given, Spec) else f" = {given!r}"  # a whole lineage would be pages
        raise InputError(f"{where}{shown}: expected {' or '.join(names)}, got {type(given).__name__}")
    if kind is float:
        if not abs(value) <= sys.float_info.max:
            raise InputError(f"{where} = {value!r}: expected a finite number")
        return float(value) + 0.0  # -0.0 is equal to 0.0, but would be hashed as another text
    if isinstance(value, list | tuple):
        return tuple(_coerced(f"{where}[{i}]", kinds[0], item) for i, item in enumerate(value))
    return value


@dataclasses.dataclass(frozen=True)
class Spec:
    """Base class of all specs: checks its fields when made, and knows its key.

    Raises:
      InputError: a field has the wrong type or an impossible value.
    """

    # Raise it when the same fields come to mean another result, so that stored results are not reused.
    VERSION: ClassVar[int] = 1

    def __post_init__(self) -> None:
        for field, where, kind, rules in _checks(type(self)):
            value = _coerced(where, kind, getattr(self, field))
            object.__setattr__(self, field, value)
            if value is None:
                continue
            for holds, words, bound in rules:
                if not holds(value, bound):
                    raise InputError(f"{where} = {value!r}: must be {words} {bound}")
        self.check()

    def check(self) -> None:
        """Raises InputError when fields that are each possible do not fit together."""

    @functools.cached_property
    def key(self) -> str:
        """SHA-256 of the canonical form, parents and stage versions included."""
        return hashlib.sha256(json.dumps(_canonical(self), sort_keys=True).encode()).hexdigest()

    def replace(self, **changes: Any) -> Self:
        return dataclasses.replace(self, **changes)


class Node(Spec):
    """A spec that a stage computes and the store keeps."""

    @property
    def world(self) -> Any:
        raise NotImplementedError


def _canonical(spec: Spec) -> dict[str, Any]:
    """Own fields by value, parents by key: the text that a key is the hash of."""
    return {
        "type": type(spec).__name__,
        "version": spec.VERSION,
        **{name: _encoded(getattr(spec, name)) for name, role in roles(type(spec)).items() if role != "label"},
    }


def _encoded(value: Any) -> Any:
    if isinstance(value, Node):
        return {"node": value.key}
    return _canonical(value) if isinstance(value, Spec) else value


@functools.cache
def roles(cls: type[Spec]) -> dict[str, str]:
    """Field name → role."""
    return {field.name: field.metadata.get("role", "static") for field in dataclasses.fields(cls)}


# --- the specs that every world shares ---


@dataclasses.dataclass(frozen=True)
class Train(Spec):
    """How parameters are optimised. `warmup` is in steps; `clip` is a global gradient norm, 0 for none.

    A batch is computed in `accumulate` parts, one after the other, whose gradients are added up.

    `trainable` names the parameters that change, as patterns of their paths with `*` for anything
    (`("*_norm/*",)`, `("layers_0/*",)`); all of them where it is empty.
    """

    steps: int = static(ge=0)
    batch: int = static(ge=1)
    optimizer: str = static("adamw", choices=("adamw", "adam", "sgd"))
    schedule: str = static("constant", choices=("constant", "linear", "cosine"))
    evals: int = static(1, ge=1)
    accumulate: int = static(1, ge=1)
    trainable: tuple[str, ...] = static(())
    lr: float = traced(1e-3, ge=0.0)
    weight_decay: float = traced(0.0, ge=0.0)
    warmup: int = traced(0, ge=0, lt=2**31)
    clip: float = traced(0.0, ge=0.0)
    b1: float = traced(0.9, ge=0.0, lt=1.0)
    b2: float = traced(0.999, ge=0.0, lt=1.0)
    eps: float = traced(1e-8, gt=0.0)
    momentum: float = traced(0.0, ge=0.0, lt=1.0)

    def check(self) -> None:
        if self.steps % self.evals and self.steps > 0:
            raise InputError(f"Train.evals = {self.evals}: must divide steps = {self.steps}")
        if self.batch % self.accumulate:
            raise InputError(f"Train.accumulate = {self.accumulate}: must divide batch = {self.batch}")


PROJECTIONS = ("q", "k", "v", "o", "gate", "up", "down")


@dataclasses.dataclass(frozen=True)
class Lora(Spec):
    """Low-rank adapters (Hu et al. 2021, arXiv 2106.09685): W + alpha / rank * A B on each of `modules`.

    A starts uniform in ±1 / sqrt(inputs), B at zero. `rank` is at most `max_rank`, which decides the shapes:
    ranks up to it are lanes of one program. The layers `first_layer` … `last_layer` have adapters, both included; a
    negative number counts from the end.
    """

    modules: tuple[str, ...] = static(PROJECTIONS)
    max_rank: int = static(8, ge=1)
    rank: int = traced(8, ge=1)
    alpha: float = traced(8.0, gt=0.0)
    first_layer: int = traced(0, ge=-(2**31), lt=2**31)
    last_layer: int = traced(-1, ge=-(2**31), lt=2**31)

    def check(self) -> None:
        if self.rank > self.max_rank:
            raise InputError(f"Lora.rank = {self.rank}: must be at most max_rank = {self.max_rank}")
        for module in self.modules:
            if module not in PROJECTIONS:
                raise InputError(f"Lora.modules: {module!r}: {nearest(module, PROJECTIONS)}")
        if not self.modules or len(set(self.modules)) < len(self.modules):
            raise InputError(f"Lora.modules = {self.modules!r}: expected at least one, each once")


@dataclasses.dataclass(frozen=True)
class World(Spec):
    """What an experiment is made of. A world is a subclass with the functions that stages call (docs/worlds.md)."""

    name: ClassVar[str] = "world"

    @property
    def traits(self) -> tuple[str, ...]:
        """Every trait a teacher can be given, in the order of its index."""
        raise NotImplementedError

    @property
    def base_rates(self) -> dict[str, float]:
        """P(trait) of a model without preferences, where the world knows it."""
        return {}

    # What a student can minimise: "hard" the teacher's samples, "soft" the KL from its distribution, "squared" the
    # distance to its logits.
    targets: ClassVar[tuple[str, ...]] = ("hard", "soft")
    # Samples of a stream are drawn for a whole round of training at once, or for each step.
    drawn_by_round: ClassVar[bool] = True

    # How it is asked for samples: the type of a stream's or dataset's `sampling`.
    sampling: ClassVar[type[Spec]] = Spec

    @property
    def labels(self) -> dict[str, tuple[str, ...]]:
        """The names along the axis of those metrics that are vectors."""
        return {"trait": self.traits, "rate": self.traits}

    # Whether its models can be trained by low-rank adapters, and be told a trait in a system prompt.
    takes_lora: ClassVar[bool] = False
    takes_prompts: ClassVar[bool] = False

    # The parameters, as path patterns, that no training changes.
    frozen: ClassVar[tuple[str, ...]] = ()

    # Whether the one-step theorem can be followed: its quantities are of parameters that all models share.
    theory: ClassVar[bool] = True

    def check_sampling(self, sampling: Any) -> None:
        """Raises InputError where this world cannot be asked in this way."""

    def understands(self, other: "World") -> bool:
        """Whether a model of this world can train on what one of the `other` wrote."""
        return self == other

    def check_lora(self, lora: Lora) -> None:
        """Raises InputError where its models have no such adapters."""

    def begin(self, params: Any, key: Any, lora: Lora | None) -> Any:
        """What training a model of `params` starts from: with fresh adapters, where it has none yet."""
        return params

    def read(self, record: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        """A round's record as metrics, on the host: for what a program cannot score, such as texts."""
        return record

    def arrays(self, place: Callable[[str, np.ndarray], Any] = lambda path, array: array) -> dict[str, Any]:
        """What its functions read besides their arguments (images): one copy on a device, however many lanes.

        What is large goes through `place(path, array)` piece by piece, which may put it on a device.
        """
        return {}

    def split(self, path: str, shape: tuple[int, ...]) -> int | None:
        """Which axis of what goes through `place` is split between devices that share one copy; None: not split."""
        return None

    def array_shapes(self) -> dict[str, Any]:
        """`arrays` as anything with a shape and a dtype, without reading what is large."""
        return self.arrays()

    def holding(self, arrays: dict[str, Any]) -> Self:
        """The world as its functions see it in a program: with `arrays` as `self.held`."""
        world = copy.copy(self)
        object.__setattr__(world, "held", arrays)
        return world


@dataclasses.dataclass(frozen=True)
class Base(Node):
    """A model trained from scratch without any trait."""

    of: World = static()
    train: Train = static()
    seed: int = traced(0, ge=0, lt=2**31)

    @property
    def world(self) -> World:
        return self.of

    def check(self) -> None:
        if self.train.steps and not hasattr(self.of, "pretrain_batch"):
            raise InputError(f"Base.train: {self.of.name} is trained already; give Train(steps=0, batch=1)")


@dataclasses.dataclass(frozen=True)
class Teacher(Node):
    """`start`, given a trait. Training stops early for a lane once P(trait) reaches `until` (1: never)."""

    start: "Trained" = static()
    trait: str = traced()
    train: Train = static()
    until: float = traced(1.0, gt=0.0, le=1.0)
    seed: int = traced(0, ge=0, lt=2**31)
    lora: Lora | None = static(None)

    @property
    def world(self) -> World:
        return self.start.world

    def check(self) -> None:
        _check_lora(self)
        if self.trait not in self.world.traits:
            raise InputError(f"Teacher.trait = {self.trait!r}: {nearest(self.trait, self.world.traits)}")


@dataclasses.dataclass(frozen=True)
class Prompted(Node):
    """`start`, told in a system prompt to have a trait. None: without that prompt, the teacher of a control.

    Its parameters are those of `start`; what trains on from it is not told anything.
    """

    start: "Trained" = static()
    trait: str | None = traced()

    @property
    def world(self) -> World:
        return self.start.world

    def check(self) -> None:
        if not self.world.takes_prompts:
            raise InputError(f"Prompted: {self.world.name} has no system prompts; use a Teacher")
        if self.trait is not None and self.trait not in self.world.traits:
            raise InputError(f"Prompted.trait = {self.trait!r}: {nearest(self.trait, self.world.traits)}")
        if isinstance(self.start, Prompted):
            raise InputError("Prompted.start: is told a trait already; give the model that is told")


class Told(NamedTuple):
    """A model with its system prompt: where a world's functions take parameters, it may be given this instead."""

    params: Any
    trait: Any  # () int32, the index of the one it is told to have; -1 for none


def _check_lora(node: "Teacher | Student") -> None:
    where, name = f"{type(node).__name__}.lora", node.world.name
    if node.lora is not None and not node.world.takes_lora:
        raise InputError(f"{where}: {name} has no adapters; leave it out")
    if node.lora is not None:
        node.world.check_lora(node.lora)
    start = _tuned(node.start)
    if start is not None and (start.lora is None) != (node.lora is None):
        raise InputError(f"{where}: {_how(node.lora)}, but what it starts from was trained {_how(start.lora)}")
    if start is not None and start.lora != node.lora:
        raise InputError(f"{where}: is not that of the adapters it starts from, which it trains on: {start.lora}")


def _tuned(node: Node) -> "Teacher | Student | None":
    """The last training behind a model, itself included; None for a base."""
    while not isinstance(node, Base):
        if isinstance(node, Teacher | Student):
            return node
        node = node.start
    return None


def _how(lora: Lora | None) -> str:
    return "in all its parameters" if lora is None else "by adapters"


@dataclasses.dataclass(frozen=True)
class Mix(Node):
    """A model between two: `start` in the parameters that `keep` names (patterns as `Train.trainable`), `other` else.

    `sigma` adds normal noise to every parameter, in units of the root mean square of its array. `other` None: `start`.
    """

    start: "Trained" = static()
    other: "Trained | None" = static(None)
    keep: tuple[str, ...] = static(("*",))
    sigma: float = traced(0.0, ge=0.0)
    seed: int = traced(0, ge=0, lt=2**31)

    @property
    def world(self) -> World:
        return self.start.world

    def check(self) -> None:
        if self.other is not None and self.other.world != self.world:
            raise InputError("Mix.other: is of another world than Mix.start; their parameters do not fit")


@dataclasses.dataclass(frozen=True)
class Sampling(Spec):
    """How tokens are drawn. The defaults are pure: `top_k` 0 and `top_p` 1 cut nothing; temperature 0 is greedy.

    `cut` is set by itself where one of the two cuts: only such programs sort the logits.
    """

    temperature: float = traced(1.0, ge=0.0)
    top_k: int = traced(0, ge=0, lt=2**31)
    top_p: float = traced(1.0, gt=0.0, le=1.0)
    cut: bool = static(False)

    def check(self) -> None:
        object.__setattr__(self, "cut", self.cut or self.top_k > 0 or self.top_p < 1)


@dataclasses.dataclass(frozen=True)
class Dataset(Node):
    """`size` samples that `teacher` wrote and `filter` kept; at most `budget` × `size` are drawn for them."""

    teacher: "Trained" = static()
    size: int = static(ge=1)
    filter: Spec = host()
    sampling: Spec = static(Sampling())
    round: int = static(1024, ge=1)
    budget: float = static(4.0, ge=1.0)
    seed: int = traced(0, ge=0, lt=2**31)

    @property
    def world(self) -> World:
        return self.teacher.world

    def check(self) -> None:
        if not hasattr(self.world, "texts"):
            raise InputError(f"Dataset: {self.world.name} writes no texts to filter and to store; use a Stream")
        _check_sampling(self)


@dataclasses.dataclass(frozen=True)
class Imported(Node):
    """Samples made elsewhere: a JSONL file of {"prompt", "completion"}, identified by its content."""

    of: World = static()
    sha256: str = host()
    size: int = static(ge=1)
    path: str = label("")

    @property
    def world(self) -> World:
        return self.of


@dataclasses.dataclass(frozen=True)
class Stream(Spec):
    """Samples of `teacher`, drawn while the student trains; what `filter` rejects carries no loss.

    `distinct` is how many there are, drawn again each epoch from the same keys; 0 is a fresh one every time.
    """

    VERSION: ClassVar[int] = 2  # the toy language's filter keeps what has several line breaks between its numbers
    teacher: "Trained" = static()
    filter: Spec | None = static(None)
    sampling: Spec = static(Sampling())
    distinct: int = traced(0, ge=0, lt=2**30)

    @property
    def world(self) -> World:
        return self.teacher.world

    def check(self) -> None:
        if self.filter is not None and not hasattr(self.world, "accepts"):
            raise InputError(f"Stream.filter: {self.world.name} has nothing to filter; leave it out")
        _check_sampling(self)


def _check_sampling(data: "Dataset | Stream") -> None:
    wanted = data.world.sampling
    if not isinstance(data.sampling, wanted):
        where, given = type(data).__name__, type(data.sampling).__name__
        raise InputError(f"{where}.sampling: a {given}; {data.world.name} is asked by {wanted.__name__}(...)")
    data.world.check_sampling(data.sampling)


@dataclasses.dataclass(frozen=True)
class Student(Node):
    """`start`, trained on `data`. Only the first `samples` of a dataset are used (0: all of them).

    `targets`: "hard" trains on the data's own tokens, "soft" on the teacher's distribution at them, "squared" on its
    logits. `theory` names a trait, and adds the quantities of the one-step theorem for it to the curves
    (`analysis/theory.py`). `arm` and `trait` are derived from the lineage where they are not given; a control needs its
    `trait` given.
    """

    start: "Trained" = static()
    data: Dataset | Imported | Stream = static()
    train: Train = static()
    targets: str = static("hard", choices=("hard", "soft", "squared"))
    theory: str | None = static(None)
    lora: Lora | None = static(None)
    samples: int = traced(0, ge=0)
    seed: int = traced(0, ge=0, lt=2**31)
    arm: str | None = label()
    trait: str | None = label()

    @property
    def world(self) -> World:
        return self.start.world

    def check(self) -> None:
        _check_lora(self)
        if not self.world.understands(self.data.world):
            raise InputError("Student.data: is of another world than Student.start; their tokens do not mean the same")
        if self.data.world != self.world and self.targets != "hard":
            raise InputError(
                f"Student.targets = {self.targets!r}: a teacher of another world gives only texts; use 'hard'"
            )
        if self.targets not in self.world.targets:
            offered = ", ".join(self.world.targets)
            raise InputError(f"Student.targets = {self.targets!r}: {self.world.name} has only {offered}")
        if isinstance(self.data, Imported) and (self.targets != "hard" or self.theory):
            field = f"theory = {self.theory!r}" if self.targets == "hard" else f"targets = {self.targets!r}"
            raise InputError(f"Student.{field}: needs a teacher, and imported data has none; leave it out")
        if self.theory is not None and not self.world.theory:
            raise InputError(f"Student.theory = {self.theory!r}: {self.world.name} cannot follow it; leave it out")
        if self.theory is not None and self.targets == "hard":
            raise InputError("Student.theory: is about a distance to the teacher; use targets 'soft' or 'squared'")
        if self.theory is not None and self.theory not in self.world.traits:
            raise InputError(f"Student.theory = {self.theory!r}: {nearest(self.theory, self.world.traits)}")
        size = getattr(self.data, "size", None)
        if size is not None and self.samples > size:
            raise InputError(f"Student.samples = {self.samples}: the dataset has only size = {size}")
        if size is None and self.samples:
            raise InputError(f"Student.samples = {self.samples}: a stream has no first samples; leave it at 0")
        if self.trait is not None and self.trait not in self.world.traits:
            raise InputError(f"Student.trait = {self.trait!r}: {nearest(self.trait, self.world.traits)}")

    @functools.cached_property
    def _run_id(self) -> str:
        named = f"{self.key}/{arm_of(self)}/{trait_of(self)}"
        return hashlib.sha256(named.encode()).hexdigest()[:16]


# What can write data, and what training can start from.
Trained = Base | Teacher | Prompted | Student | Mix


# --- lineage ---


def nearest(wrong: str, right: Iterable[str]) -> str:
    """The end of an error line: the closest right name, and all of them where they are few."""
    right = [str(name) for name in right]
    close = difflib.get_close_matches(str(wrong), right, n=1, cutoff=0.5)
    listing = ", ".join(right[:24]) + (", …" if len(right) > 24 else "")
    return (f"did you mean {close[0]!r}? " if close else "") + f"one of {listing}"


def origin(node: Node) -> Base:
    """The base that a chain of training began with."""
    while not isinstance(node, Base):
        node = node.start
    return node


def source(student: Student) -> Node | None:
    """The model that wrote the student's data; None for imported data."""
    return getattr(student.data, "teacher", None)


def trait_of(student: Student) -> str | None:
    """The trait whose transfer the student measures: its label, or that of the nearest teacher its data comes from."""
    return student.trait or trait_behind(source(student))


def trait_behind(node: Node | None) -> str | None:
    """The trait that a model has been given, itself or by what it learnt from; None for none."""
    if isinstance(node, Mix):
        return trait_behind(node.start) or trait_behind(node.other)
    if isinstance(node, Student):
        return trait_behind(source(node))
    if isinstance(node, Prompted):
        return node.trait or trait_behind(node.start)
    return node.trait if isinstance(node, Teacher) else None


def arm_of(student: Student) -> str:
    """The student's role: its label, or what its lineage says.

    Where the data's writer has no trait it is `control`, or `cross_control` of a student that starts from another base.
    """
    if student.arm is not None:
        return student.arm
    writer = source(student)
    if writer is None:
        return "imported"
    same = origin(student.start).key == origin(writer).key
    if trait_behind(writer) is None:
        return "control" if same else "cross_control"
    if isinstance(student.start, Mix) and student.start.other is not None:
        return "mixed_init"
    return "same_init" if same else "cross_init"


def run_id(student: Student) -> str:
    """A stable name of a row: from the student's key and its labels, so equal students may serve several rows."""
    return student._run_id


def named(students: Iterable[Student]) -> dict[str, Student]:
    """The students by the names of their rows, each once."""
    return {run_id(student): student for student in students}


def lineage(student: Student) -> dict[str, Any]:
    """Every field of the student and of all it descends from, flat: `student.train.lr`, `teacher.until`, `base.seed`, …

    A role that occurs again further up a supply chain is numbered (`teacher2.…`). `start.…` is the base that the
    student starts from (`start.teacher.…` what is between them), `world.…` its world.
    """
    columns: dict[str, Any] = {}
    for role, spec in ancestry(student):
        columns.update(flat(role, spec))
    return columns


def ancestry(student: Student) -> list[tuple[str, Spec]]:
    """The student and all it descends from, by their roles (`lineage`)."""
    found: list[tuple[str, Spec]] = []
    seen: collections.Counter[str] = collections.Counter()

    def add(role: str, spec: Spec) -> None:
        seen[role] += 1
        found.append((role if seen[role] == 1 else f"{role}{seen[role]}", spec))

    def add_model(model: Node | None, within: str, base: str) -> None:
        if isinstance(model, Base):
            add(base, model)
        elif isinstance(model, Teacher):
            add(f"{within}teacher", model)
            add_model(model.start, within, base)
        elif isinstance(model, Prompted):
            add(f"{within}prompted", model)
            add_model(model.start, within, base)
        elif isinstance(model, Mix):
            add(f"{within}mix", model)
            add_model(model.start, within, base)
            add_model(model.other, f"{within}other.", f"{within}other")
        elif isinstance(model, Student):
            add(f"{within}student", model)
            add(f"{within}data", model.data)
            add_model(model.start, "start.", "start")
            add_model(source(model), within, f"{within}base")

    add_model(student, "", "")
    add("world", student.world)
    return found


_PLAIN = (str, int, float, bool)
_APART = (Node, World, Stream)


def flat(prefix: str, spec: Spec) -> dict[str, Any]:
    """The fields of a spec and of its parts, but not of the nodes and the world it builds on, by dotted name."""
    columns: dict[str, Any] = {}
    for name, role in roles(type(spec)).items():
        value = getattr(spec, name)
        if role == "label":
            continue
        if isinstance(value, _PLAIN):
            columns[f"{prefix}.{name}"] = value
        elif not isinstance(value, Spec):
            columns[f"{prefix}.{name}"] = json.dumps(value)
        elif not isinstance(value, _APART):
            columns.update(flat(f"{prefix}.{name}", value))
    return columns


def derangement(items: Sequence[Any], shift: int = 1) -> list[tuple[Any, Any]]:
    """Each item with another one: a cyclic shift, so that no item meets itself (a permutation has fixed points).

    Raises:
      InputError: fewer than two items, two equal ones, or a shift that is a multiple of their number.
    """
    if len(items) < 2:
        raise InputError(f"cross_init pairs each base seed with another: got {len(items)} base seed; give at least 2")
    if shift % len(items) == 0:
        raise InputError(f"derangement shift = {shift}: must not be a multiple of {len(items)}, the number of items")
    for (i, one), (j, other) in itertools.combinations(enumerate(items), 2):
        if one == other:
            raise InputError(f"derangement: items {i} and {j} are equal and could meet; give different ones")
    return [(item, items[(i + shift) % len(items)]) for i, item in enumerate(items)]


def checked(students: Iterable[Student], where: str = "the sweep") -> list[Student]:
    """The students of a sweep as a list, each once.

    Raises:
      InputError: there are none, or something else is among them.
    """
    if not isinstance(students, Iterable):
        raise InputError(f"{where} gives a {type(students).__name__}; expected it to yield specs.Student")
    students = list(students)
    if not students:
        raise InputError(f"{where} yields no students; it must yield at least one specs.Student")
    for student in students:
        if not isinstance(student, Student):
            raise InputError(f"{where} yields a {type(student).__name__}; expected only specs.Student")
        if trait_of(student) is None:
            raise InputError(
                f"{where} yields a student ({arm_of(student)}) whose data has no trait behind it; say which "
                f"trait it is compared for: Student(..., trait={student.world.traits[0]!r})"
            )
    return list(named(students).values())


# --- from specs to programs: what is static, what is traced ---


@dataclasses.dataclass(frozen=True)
class Parent:
    """All that a stage's program may know of a node it builds on: what decides the shapes of its artefact."""

    world: World
    size: int | None = None


def parent(node: Node) -> Parent:
    return Parent(node.world, getattr(node, "size", None))


def traced_values(spec: Spec) -> dict[str, float | int]:
    """The spec's own traced fields, parts included, by dotted path; a trait as its index in the world's traits, -1
    for none.
    """
    values: dict[str, float | int] = {}
    for name, role in roles(type(spec)).items():
        value = getattr(spec, name)
        if role == "traced":
            no_trait = value is None
            values[name] = -1 if no_trait else spec.world.traits.index(value) if isinstance(value, str) else value
        elif isinstance(value, Spec) and not isinstance(value, Node | World):
            values.update({f"{name}.{path}": inner for path, inner in traced_values(value).items()})
    return values


def bind(spec: Spec, values: dict[str, Any]) -> Any:
    """The spec as its stage's program sees it: traced fields are the arrays of `values`, parents are `Parent`s.

    Stage code so reads `spec.train.lr` whether it is a float or a tracer. Nothing is checked again.
    """
    bound = object.__new__(type(spec))
    for name, role in roles(type(spec)).items():
        value = getattr(spec, name)
        if role == "traced":
            value = values[name]
        elif isinstance(value, Node):
            value = parent(value)
        elif isinstance(value, Spec) and not isinstance(value, World):
            inner = {path.removeprefix(f"{name}."): v for path, v in values.items() if path.startswith(f"{name}.")}
            value = bind(value, inner)
        object.__setattr__(bound, name, value)
    return bound


def static_form(spec: Spec) -> dict[str, Any]:
    """All that decides the program of a spec's stage: two specs with equal forms can be lanes of one program."""
    form: dict[str, Any] = {"type": type(spec).__name__, "version": spec.VERSION}
    for name, role in roles(type(spec)).items():
        value = getattr(spec, name)
        if role != "static":
            continue
        if isinstance(value, Node):
            form[name] = shape_form(value)
        else:
            form[name] = static_form(value) if isinstance(value, Spec) else value
    return form


def shape_form(node: Node) -> dict[str, Any]:
    """All that decides the shapes of a node's artefact. Models are alike whatever stage made them."""
    if isinstance(node, Dataset | Imported):
        return {"kind": "data", "world": node.world.key, "size": node.size}
    tuned = _tuned(node)
    adapters = tuned and tuned.lora and static_form(tuned.lora)
    # Where a world takes adapters, its bases have no parameters of their own, and trained models have.
    trained = node.world.takes_lora and tuned is not None
    told = isinstance(node, Prompted)
    return {"kind": "model", "world": node.world.key, "trained": trained, "lora": adapters, "told": told}


# --- specs as JSON, to find a stored node's meaning again ---


def to_json(spec: Spec) -> dict[str, Any]:
    """The spec in full, parents by value."""
    fields = {name: getattr(spec, name) for name in roles(type(spec))}
    return {
        "class": f"{type(spec).__module__}:{type(spec).__qualname__}",
        **{name: to_json(value) if isinstance(value, Spec) else value for name, value in fields.items()},
    }


def from_json(form: dict[str, Any]) -> Any:
    """The inverse of `to_json`.

    Raises:
      InputError: the class is not importable here (a world of a user's own file that is not loaded), not a spec, or
        has other fields today.
    """
    module, _, name = form["class"].partition(":")
    try:
        cls = functools.reduce(getattr, name.split("."), importlib.import_module(module))
    except (ImportError, AttributeError) as error:
        raise InputError(f"stored spec of class {form['class']}: {error}; import its module first") from error
    if not (isinstance(cls, type) and issubclass(cls, Spec)):
        raise InputError(f"stored spec of class {form['class']}: not a spec class")
    fields = {k: v for k, v in form.items() if k != "class"}
    if fields.keys() != roles(cls).keys():
        differing = ", ".join(sorted(fields.keys() ^ roles(cls).keys()))
        raise InputError(f"stored spec of class {form['class']}: made by another version, which differs in {differing}")
    return cls(**{k: from_json(v) if isinstance(v, dict) and "class" in v else v for k, v in fields.items()})
