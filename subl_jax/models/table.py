"""The architectures there are, by name: those in this folder, and a user's own."""

import functools
import importlib
import pkgutil

from subl_jax import models
from subl_jax.errors import InputError
from subl_jax.models.base import MEMBERS, Decodes, Model
from subl_jax.specs import nearest


@functools.cache
def _imported() -> None:
    for module in pkgutil.iter_modules(models.__path__):
        importlib.import_module(f"{models.__name__}.{module.name}")


def members() -> dict[str, type[Model]]:
    """Every architecture that has been imported, those of this folder among them."""
    _imported()
    return dict(MEMBERS)


def language_model(name: str, where: str) -> type[Decodes]:
    """The architecture of a language model: by its name, or as `module:Class`, of a user's own file.

    Raises:
      InputError: there is none of this name; `where` names the field.
    """
    module, colon, attribute = name.partition(":")
    if colon:
        try:
            found = getattr(importlib.import_module(module), attribute)
        except (ImportError, AttributeError) as error:
            raise InputError(f"{where} = {name!r}: {error}") from error
    else:
        found = members().get(name)
    if not (isinstance(found, type) and issubclass(found, Decodes)):
        known = [known for known, model in members().items() if issubclass(model, Decodes)]
        raise InputError(f"{where} = {name!r}: {nearest(name, known)}")
    return found
