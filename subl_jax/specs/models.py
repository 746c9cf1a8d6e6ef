"""Models of a sweep: bases, teachers, and what lies between two models. Each node answers for itself."""

import dataclasses
from collections.abc import Iterator
from typing import Any, ClassVar

from subl_jax.errors import InputError
from subl_jax.specs.base import Node, Spec, brief, nearest, static, traced
from subl_jax.specs.parts import Lora, Train
from subl_jax.specs.program import Parent, static_form
from subl_jax.specs.world import Microbatches, Pretrains, TakesAdapters, TakesSystemPrompts, World


class Trained(Node):
    """A model: what can write data, and what training can start from."""

    start: "Trained"

    @property
    def world(self) -> World:
        return self.start.world

    @property
    def before(self) -> "Trained":
        """What it was made from; itself, of a base."""
        return self.start

    @property
    def origin(self) -> "Base":
        """The base that a chain of training began with."""
        return self.start.origin

    @property
    def tuned(self) -> "Tuned | None":
        """The last training behind it, itself included; None for a base."""
        return self.start.tuned

    @property
    def writer(self) -> "Trained | None":
        """Who wrote what it has learnt from; None where nobody did."""
        return None

    @property
    def hops(self) -> int:
        """How many students are behind it, itself included, each of which learnt what the one before had written."""
        return self.start.hops

    @property
    def relays(self) -> int:
        """Of these, how many its trait has gone through: none where it has been given the trait itself."""
        return self.start.relays

    # Whether it is between two starts, and whether it is told something in a system prompt.
    mixed: ClassVar[bool] = False
    told: ClassVar[bool] = False

    @property
    def given_trait(self) -> str | None:
        return self.start.given_trait

    def inputs(self) -> dict[str, Node]:
        return {"start": self.start}

    def kin(self, within: str = "", base: str = "base") -> Iterator[tuple[str, Spec]]:
        yield f"{within}{self.role}", self
        yield from self.start.kin(within, base)

    def shape_form(self) -> dict[str, Any]:
        tuned = self.tuned
        adapters = tuned and tuned.lora and static_form(tuned.lora)
        # Where bases have no parameters of their own, trained models have.
        trained = isinstance(self.world, TakesAdapters) and self.world.bare_bases and tuned is not None
        return {"kind": "model", "world": self.world.key, "trained": trained, "lora": adapters, "told": self.told}

    def stand_in(self) -> Parent:
        return Parent(self.world)


@dataclasses.dataclass(frozen=True)
class Base(Trained):
    """A model trained from scratch without any trait."""

    stage: ClassVar[str] = "pretrain"
    role: ClassVar[str] = "base"

    of: World = static()
    train: Train = static()
    seed: int = traced(0, ge=0, lt=2**31)

    @property
    def world(self) -> World:
        return self.of

    @property
    def before(self) -> "Base":
        return self

    @property
    def origin(self) -> "Base":
        return self

    @property
    def tuned(self) -> None:
        return None

    @property
    def hops(self) -> int:
        return 0

    @property
    def relays(self) -> int:
        return 0

    @property
    def given_trait(self) -> None:
        return None

    def inputs(self) -> dict[str, Node]:
        return {}

    def kin(self, within: str = "", base: str = "base") -> Iterator[tuple[str, Spec]]:
        yield base, self

    def check(self) -> None:
        if self.train.steps and not isinstance(self.of, Pretrains):
            raise InputError(f"Base.train: {self.of.name} is trained already; give Train(steps=0, batch=1)")
        _check_train(self)


class Tuned(Trained):
    """A model that training made from another one."""

    train: Train
    lora: Lora | None

    @property
    def tuned(self) -> "Tuned":
        return self

    def check(self) -> None:
        where, name = f"{type(self).__name__}.lora", self.world.name
        if self.lora is not None:
            if not isinstance(self.world, TakesAdapters):
                raise InputError(f"{where}: {name} has no adapters; leave it out")
            self.world.check_lora(self.lora)
        start = self.start.tuned
        if start is not None and (start.lora is None) != (self.lora is None):
            raise InputError(f"{where}: {_how(self.lora)}, but what it starts from was trained {_how(start.lora)}")
        if start is not None and start.lora != self.lora:
            raise InputError(f"{where}: is not that of the adapters it starts from, which it trains on: {start.lora}")
        _check_train(self)


def _how(lora: Lora | None) -> str:
    return "in all its parameters" if lora is None else "by adapters"


def _check_train(node: "Base | Tuned") -> None:
    if node.train.accumulate > 1 and not isinstance(node.world, Microbatches):
        raise InputError(f"Train.accumulate: {node.world.name} computes a batch in one piece; leave it at 1")


def check_trait(where: str, trait: str | None, world: World) -> None:
    if trait is not None and trait not in world.traits:
        raise InputError(f"{where} = {brief(trait)}: {nearest(trait, world.traits)}")


@dataclasses.dataclass(frozen=True)
class Teacher(Tuned):
    """`start`, given a trait. Training stops early for a lane once P(trait) reaches `until` (1: never)."""

    stage: ClassVar[str] = "instil"
    role: ClassVar[str] = "teacher"

    start: Trained = static()
    trait: str = traced()
    train: Train = static()
    until: float = traced(1.0, gt=0.0, le=1.0)
    seed: int = traced(0, ge=0, lt=2**31)
    lora: Lora | None = static(None)

    @property
    def relays(self) -> int:
        return 0

    @property
    def given_trait(self) -> str:
        return self.trait

    def check(self) -> None:
        super().check()
        check_trait("Teacher.trait", self.trait, self.world)


@dataclasses.dataclass(frozen=True)
class Prompted(Trained):
    """`start`, told in a system prompt to have a trait. None: without that prompt, the teacher of a control.

    Its parameters are those of `start`; what trains on from it is not told anything.
    """

    stage: ClassVar[str] = "prompt"
    role: ClassVar[str] = "prompted"
    told: ClassVar[bool] = True

    start: Trained = static()
    trait: str | None = traced()

    @property
    def relays(self) -> int:
        return 0 if self.trait else self.start.relays

    @property
    def given_trait(self) -> str | None:
        return self.trait or self.start.given_trait

    def check(self) -> None:
        if not isinstance(self.world, TakesSystemPrompts):
            raise InputError(f"Prompted: {self.world.name} has no system prompts; use a Teacher")
        check_trait("Prompted.trait", self.trait, self.world)
        if self.start.told:
            raise InputError("Prompted.start: is told a trait already; give the model that is told")


@dataclasses.dataclass(frozen=True)
class Mix(Trained):
    """A model between two: `start` in the parameters that `keep` names (patterns as `Train.trainable`), `other` else.

    `sigma` adds normal noise to every parameter, in units of the root mean square of its array. `other` None: `start`.
    """

    stage: ClassVar[str] = "mix"
    role: ClassVar[str] = "mix"

    start: Trained = static()
    other: Trained | None = static(None)
    keep: tuple[str, ...] = static(("*",))
    sigma: float = traced(0.0, ge=0.0)
    seed: int = traced(0, ge=0, lt=2**31)

    @property
    def mixed(self) -> bool:
        return self.other is not None

    @property
    def hops(self) -> int:
        return max(self.start.hops, self.other.hops if self.other else 0)

    @property
    def relays(self) -> int:
        return max(self.start.relays, self.other.relays if self.other else 0)

    @property
    def given_trait(self) -> str | None:
        return self.start.given_trait or (self.other and self.other.given_trait)

    def inputs(self) -> dict[str, Node]:
        return {"start": self.start, **({} if self.other is None else {"other": self.other})}

    def kin(self, within: str = "", base: str = "base") -> Iterator[tuple[str, Spec]]:
        yield from super().kin(within, base)
        if self.other is not None:
            yield from self.other.kin(f"{within}other.", f"{within}other")

    def check(self) -> None:
        if self.other is not None and self.other.world != self.world:
            raise InputError("Mix.other: is of another world than Mix.start; their parameters do not fit")
