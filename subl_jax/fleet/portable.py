"""Specs and the modules they come from, as another machine takes them."""

import functools
import importlib.util
import os
import pathlib
import re
import sys
from collections.abc import Iterator, Mapping
from typing import Any

from subl_jax import specs
from subl_jax.storage.atomic import is_local

# How stored specs have named it: by its alias, by the room, by its module.
_IMPORTED = re.compile(r"specs/Imported|subl_jax\.specs(\.\w+)*:Imported")


def forms_of(nodes: Any) -> tuple[list[dict[str, Any]], dict[str, str]]:
    """Nodes as JSON, and the sources of the modules that a worker may not have: those beside a sweep file."""
    forms = [portable(specs.to_json(node)) for node in nodes]
    # Classes of this package go by an alias, without a module.
    modules = {name.partition(":")[0] for form in forms for name in classes(form) if ":" in name}
    return forms, {name: source(name) for name in sorted(modules) if "." not in name}


def portable(form: Any) -> Any:
    """A spec as JSON, with the paths of local files in full: a worker has a folder of its own."""
    if not isinstance(form, dict):
        return form
    made = {name: portable(value) for name, value in form.items()}
    if _IMPORTED.fullmatch(str(form.get("class"))) and form["path"] and is_local(form["path"]):
        made["path"] = os.path.abspath(os.path.expanduser(form["path"]))
    return made


def classes(form: Any) -> Iterator[str]:
    """The classes of a spec and of all within it, as JSON names them."""
    if isinstance(form, dict):
        yield form["class"]
        for value in form.values():
            yield from classes(value)


@functools.cache
def source(module: str) -> str:
    """Of a single file (a sweep file, a world beside it), which no other machine need have."""
    return pathlib.Path(sys.modules[module].__file__).read_text(encoding="utf-8")


def import_sources(sources: Mapping[str, str]) -> None:
    """Makes the driver's own modules, even where this machine has others of the same names."""
    for name, source in sources.items():
        there = sys.modules.get(name)
        if there is None or getattr(there, "__source__", None) != source:
            module = importlib.util.module_from_spec(importlib.util.spec_from_loader(name, loader=None))
            module.__source__ = source
            sys.modules[name] = module
            exec(compile(source, f"<{name} of the driver>", "exec"), module.__dict__)
