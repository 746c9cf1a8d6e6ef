"""A spec says what to compute: a frozen dataclass whose fields have roles, and whose key names its result.

Every field has a role:

    static   changes shapes or the program; decides the group (one compiled program)
    traced   a number inside the program; decides the lane
    host     used on the host only (a filter): part of the identity, not of the program
    label    how a row is presented (arm, trait of a control): not part of the identity

A field that was added later says `since=2` (or more). It does not enter a key while it is at its default, so that what
was stored before it came keeps its name. The role and `since` are for whoever adds a field; users only pass values.

Specs that a stage computes are *nodes*; specs that only parameterise them are *parts* (`Train`, a filter).
"""

import dataclasses
import difflib
import functools
import hashlib
import json
import sys
import typing
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator
from typing import Any, ClassVar, NamedTuple, Self

import numpy as np

from subl_jax.errors import InputError


def _field(role: str, default: Any, rules: dict[str, Any]) -> Any:
    if "since" in rules and default is dataclasses.MISSING:
        raise TypeError(
            "a field that was added later (since=) needs a default: what was stored before it came has none"
        )
    return dataclasses.field(default=default, metadata={"role": role, **rules}, compare=role != "label")


def static(default: Any = dataclasses.MISSING, **rules: Any) -> Any:
    """A field that changes the program. Rules: `ge`, `gt`, `le`, `lt`, `choices`; and `since` of a later field."""
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
    given = value
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
        names = [kind.__name__] if typing.get_origin(kind) is tuple else _offered(typing.get_args(kind) or (kind,))
        shown = "" if isinstance(given, Spec) else f" = {brief(given)}"
        raise InputError(f"{where}{shown}: expected {' or '.join(names)}, got {type(given).__name__}")
    if kind is float:
        if not abs(value) <= sys.float_info.max:
            raise InputError(f"{where} = {brief(value)}: expected a finite number")
        return float(value) + 0.0  # -0.0 is equal to 0.0, but would be hashed as another text
    if isinstance(value, list | tuple):
        (of, *_) = typing.get_args(kind)
        return tuple(_coerced(f"{where}[{i}]", of, item) for i, item in enumerate(value))
    return value


def brief(value: Any, most: int = 60) -> str:
    """The `repr` of a value for an error line, cut where it is long; of a spec its class."""
    if isinstance(value, Spec):
        return f"{type(value).__name__}(…)"
    if isinstance(value, list | tuple):
        inner = ", ".join(brief(each) for each in value[:4]) + (", …" if len(value) > 4 else "")
        comma = "," if isinstance(value, tuple) and len(value) == 1 else ""
        text = f"[{inner}]" if isinstance(value, list) else f"({inner}{comma})"
    elif isinstance(value, dict):
        return f"{{{', '.join(brief(key) for key in list(value)[:4])}…}}"
    else:
        text = repr(value)
    return text if len(text) <= most else f"{text[: most - 1]}…"


def _offered(kinds: Iterable[type]) -> list[str]:
    """The names that a person can give: of a kind that stands for several, each of these."""
    names: list[str] = []
    for kind in kinds:
        several = issubclass(kind, Spec) and "__dataclass_params__" not in vars(kind)  # it has no fields of its own
        names += _offered(kind.__subclasses__()) if several else [kind.__name__]
    return list(dict.fromkeys(names))


@dataclasses.dataclass(frozen=True)
class Spec:
    """Base class of all specs: checks its fields when made, and knows its key.

    Raises:
      InputError: a field has the wrong type or an impossible value.
    """

    # Raise it when the same fields come to mean another result, so that stored results are not reused.
    VERSION: ClassVar[int] = 1

    # Of a part that may be of several kinds (an objective, a transform): what tables call this one.
    kind: ClassVar[str | None] = None

    def __post_init__(self) -> None:
        for field, where, kind, rules in _checks(type(self)):
            value = getattr(self, field)
            # Most values are of their type; of floats also the value has to be looked at.
            if type(value) is not kind or kind is float:
                value = _coerced(where, kind, value)
                object.__setattr__(self, field, value)
            if value is None:
                continue
            for holds, words, bound in rules:
                if not holds(value, bound):
                    raise InputError(f"{where} = {brief(value)}: must be {words} {bound}")
        self.check()

    def check(self) -> None:
        """Raises InputError when fields that are each possible do not fit together."""

    @functools.cached_property
    def key(self) -> str:
        """SHA-256 of the canonical form, parents and stage versions included."""
        return hashlib.sha256(json.dumps(_canonical(self), sort_keys=True).encode()).hexdigest()

    def replace(self, **changes: Any) -> Self:
        return dataclasses.replace(self, **changes)


class Node(Spec, ABC):
    """A spec that a stage computes and the store keeps. It answers for itself: no other place knows its kinds.

    stage: the name of the stage that computes it (`subl_jax.stages`); "" for what is read rather than computed.
    role: what it is called in a lineage (`teacher.train.lr`).
    row: the table that it has a row in where a sweep yields it; "" where it is only a step on the way.
    """

    stage: ClassVar[str]
    role: ClassVar[str]
    row: ClassVar[str] = ""

    @property
    @abstractmethod
    def world(self) -> Any:
        """The `World` that it belongs to."""

    @abstractmethod
    def inputs(self) -> dict[str, "Node"]:
        """The nodes whose artefacts its program reads, by the names that the stage knows them by."""

    @abstractmethod
    def kin(self, within: str = "", base: str = "base") -> Iterator[tuple[str, Spec]]:
        """Itself and all it descends from, with their roles; `within` goes before these, `base` names its base."""

    @abstractmethod
    def shape_form(self) -> dict[str, Any]:
        """All that decides the shapes of its artefact, as JSON. Models are alike whatever stage made them."""

    @abstractmethod
    def stand_in(self) -> Any:
        """What the program of a node that builds on this one may know of it: what decides shapes, and no more."""

    @property
    def given_trait(self) -> str | None:
        """The trait that a model has been given, itself or by what it learnt from; of data, that of their writer."""
        return None


# --- fields ---


@functools.cache
def roles(cls: type[Spec]) -> dict[str, str]:
    """Field name → role."""
    return {field.name: field.metadata.get("role", "static") for field in dataclasses.fields(cls)}


@functools.cache
def added_later(cls: type[Spec]) -> dict[str, Any]:
    """Field name → default, of the fields that a later version added (`since=`)."""
    return {field.name: field.default for field in dataclasses.fields(cls) if "since" in field.metadata}


def identifying(spec: Spec) -> list[str]:
    """The fields that identify the spec: all but labels, and of later fields those that are not at their default."""
    later = added_later(type(spec))
    return [
        name
        for name, role in roles(type(spec)).items()
        if role != "label" and (name not in later or getattr(spec, name) != later[name])
    ]


def parts(spec: Spec, name: str) -> dict[str, Spec]:
    """The specs within a field by path: the field's own under its name, those of a tuple as `name.0`, `name.1`, …"""
    value = getattr(spec, name)
    if isinstance(value, Spec):
        return {name: value}
    if isinstance(value, tuple):
        return {f"{name}.{i}": each for i, each in enumerate(value) if isinstance(each, Spec)}
    return {}


def _canonical(spec: Spec) -> dict[str, Any]:
    """Own fields by value, parents by key: the text that a key is the hash of."""
    named = {name: _encoded(getattr(spec, name)) for name in identifying(spec)}
    return {"type": type(spec).__name__, "version": spec.VERSION, **named}


def _encoded(value: Any) -> Any:
    if isinstance(value, tuple):
        return [_encoded(each) for each in value]
    if not isinstance(value, Spec):
        return value
    return {"node": value.key} if isinstance(value, Node) else _canonical(value)


def nearest(wrong: str, right: Iterable[str]) -> str:
    """The end of an error line: the closest right name, and all of them where they are few."""
    right = [str(name) for name in right]
    close = difflib.get_close_matches(str(wrong), right, n=1, cutoff=0.5)
    listing = ", ".join(right[:24]) + (", …" if len(right) > 24 else "")
    return (f"did you mean {close[0]!r}? " if close else "") + f"one of {listing}"
