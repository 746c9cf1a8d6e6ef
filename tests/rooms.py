"""The members of a room, found by looking: a new file is tested by lying there."""

import importlib
import inspect
import pkgutil


def members(room: str, base: type) -> list[type]:
    """Every class in `subl_jax/<room>/` that can be made and is a `base`."""
    package = importlib.import_module(f"subl_jax.{room}")
    found = []
    for module in pkgutil.iter_modules(package.__path__, f"{package.__name__}."):
        for each in vars(importlib.import_module(module.name)).values():
            if inspect.isclass(each) and issubclass(each, base) and each.__module__ == module.name:
                found += [] if inspect.isabstract(each) else [each]
    return found
