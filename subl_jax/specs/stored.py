"""Specs as JSON, to find a stored node's meaning again. A class goes by a stable alias: its room and its name."""

import functools
import importlib
import pkgutil
from typing import Any

from subl_jax.errors import InputError
from subl_jax.specs.base import Spec, added_later, roles

# The rooms of classes that were stored under the names of the modules they lay in before there were rooms.
_MOVED = {
    "subl_jax.specs": "specs",
    "subl_jax.filters": "channels",
    "subl_jax.images": "worlds",
    "subl_jax.worlds.toy_language": "worlds",
    "subl_jax.worlds.digits": "worlds",
    "subl_jax.worlds.pretrained": "worlds",
}


def alias(cls: type) -> str:
    """`specs/Base`: the room and the name of a class of this package, whichever file it lies in; `module:Name` else."""
    package, _, rest = cls.__module__.partition(".")
    return (
        f"{rest.partition('.')[0]}/{cls.__qualname__}"
        if package == "subl_jax"
        else f"{cls.__module__}:{cls.__qualname__}"
    )


def class_of(name: str) -> type[Spec]:
    """The inverse of `alias`; names of before there were rooms are known too.

    Raises:
      InputError: the class is not importable here (a world of a user's own file that is not loaded), or not a spec.
    """
    module, colon, member = name.partition(":")
    try:
        if colon and module not in _MOVED:
            found = functools.reduce(getattr, member.split("."), importlib.import_module(module))
        else:
            room, _, own = name.partition("/")
            found = _in_room(_MOVED[module], member) if colon else _in_room(room, own)
    except (ImportError, AttributeError) as error:
        raise InputError(f"stored spec of class {name}: {error}; import its module first") from error
    if not (isinstance(found, type) and issubclass(found, Spec)):
        raise InputError(f"stored spec of class {name}: not a spec class")
    return found


@functools.cache
def _in_room(room: str, name: str) -> Any:
    """A class of a room by its name, wherever in the room it lies."""
    package = importlib.import_module(f"subl_jax.{room}")
    if name in vars(package):
        return vars(package)[name]
    for module in pkgutil.walk_packages(package.__path__[:1], f"{package.__name__}."):
        found = vars(importlib.import_module(module.name)).get(name)
        if isinstance(found, type) and found.__module__ == module.name:
            return found
    raise AttributeError(f"no class {name} in subl_jax.{room}")


def to_json(spec: Spec) -> dict[str, Any]:
    """The spec in full, parents by value."""
    return {"class": alias(type(spec)), **{name: _written(getattr(spec, name)) for name in roles(type(spec))}}


def _written(value: Any) -> Any:
    if isinstance(value, tuple):
        return [_written(each) for each in value]
    return to_json(value) if isinstance(value, Spec) else value


def from_json(form: dict[str, Any]) -> Any:
    """The inverse of `to_json`. Fields that a later version added, and that are not there, are at their defaults.

    Raises:
      InputError: as `class_of`; or the class has other fields today.
    """
    cls = class_of(form["class"])
    fields = {name: value for name, value in form.items() if name != "class"}
    today = roles(cls).keys()
    differing = (fields.keys() - today) | (today - fields.keys() - added_later(cls).keys())
    if differing:
        names = ", ".join(sorted(differing))
        raise InputError(f"stored spec of class {form['class']}: made by another version, which differs in {names}")
    return cls(**{name: _restored(value) for name, value in fields.items()})


def _restored(value: Any) -> Any:
    if isinstance(value, list):
        return tuple(_restored(each) for each in value)
    return from_json(value) if isinstance(value, dict) and "class" in value else value
