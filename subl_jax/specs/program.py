"""From specs to programs: what is static, what is traced, and how a spec looks inside its stage's program."""

import dataclasses
from typing import Any

from subl_jax.specs.base import Node, Spec, identifying, parts, roles
from subl_jax.specs.world import World


@dataclasses.dataclass(frozen=True)
class Parent:
    """All that a stage's program may know of a node it builds on: what decides the shapes of its artefact."""

    world: World
    size: int | None = None
    streamed: bool = False


def traced_values(spec: Spec, world: World | None = None) -> dict[str, float | int]:
    """The spec's own traced fields, parts included, by dotted path; a trait as its index in the world's traits, -1
    for none.
    """
    values: dict[str, float | int] = {}
    world = spec.world if isinstance(spec, Node) else world
    for name, role in roles(type(spec)).items():
        if role == "traced":
            value = getattr(spec, name)
            values[name] = -1 if value is None else world.traits.index(value) if isinstance(value, str) else value
            continue
        for place, part in parts(spec, name).items():
            if not isinstance(part, Node | World):
                values.update({f"{place}.{path}": inner for path, inner in traced_values(part, world).items()})
    return values


def bind(spec: Spec, values: dict[str, Any]) -> Any:
    """The spec as its stage's program sees it: traced fields are the arrays of `values`, parents are stand-ins.

    Stage code so reads `spec.train.lr` whether it is a float or a tracer. Nothing is checked again.
    """

    def bound_part(place: str, part: Any) -> Any:
        if isinstance(part, Node):
            return part.stand_in()
        if not isinstance(part, Spec) or isinstance(part, World):
            return part
        return bind(
            part, {path.removeprefix(f"{place}."): v for path, v in values.items() if path.startswith(f"{place}.")}
        )

    bound = object.__new__(type(spec))
    for name, role in roles(type(spec)).items():
        value = getattr(spec, name)
        if role == "traced":
            value = values[name]
        elif isinstance(value, tuple):
            value = tuple(bound_part(f"{name}.{i}", each) for i, each in enumerate(value))
        else:
            value = bound_part(name, value)
        object.__setattr__(bound, name, value)
    return bound


def static_form(spec: Spec) -> dict[str, Any]:
    """All that decides the program of a spec's stage: two specs with equal forms can be lanes of one program."""
    form: dict[str, Any] = {"type": type(spec).__name__, "version": spec.VERSION}
    known = roles(type(spec))
    for name in identifying(spec):
        if known[name] == "static":
            value = getattr(spec, name)
            form[name] = [_form(each) for each in value] if isinstance(value, tuple) else _form(value)
    return form


def _form(value: Any) -> Any:
    if not isinstance(value, Spec):
        return value
    return value.shape_form() if isinstance(value, Node) else static_form(value)
