"""Adapters of the toy language's models: their parameters hold the base, the adapters and their scale.

base/…    as of every model, and never trained
lora/…    `models/lora.py`
scale     ()
"""

from typing import Any, ClassVar

import jax

from subl_jax import specs
from subl_jax.errors import InputError
from subl_jax.models import lora
from subl_jax.models.base import HasResiduals, TakesAdapters

Params = Any


class Adapted(specs.TakesAdapters):
    """A world whose models may have adapters. Such a model is merged wherever it is computed: it is small."""

    bare_bases: ClassVar[bool] = False
    frozen: ClassVar[tuple[str, ...]] = ("base/*", *lora.FROZEN)

    model: Any

    def check_lora(self, spec: specs.Lora) -> None:
        if not isinstance(self.model, TakesAdapters):
            raise InputError(f"Lora: the architecture {self.model.name!r} takes no adapters; leave it out")
        lora.check(self.model, spec)

    def trainable(self, params: Params, key: jax.Array, spec: specs.Lora | None) -> Params:
        if spec is None or "lora" in params:
            return params
        return {"base": params, **lora.init(self.model, key, spec)}

    def merged(self, params: Params) -> Params:
        return lora.merged(self.model, params["base"], params) if "lora" in params else params


class Residual(specs.ReadsResiduals):
    """A world whose models' residual stream can be read, where their architecture has one."""

    model: Any
    prompt_length: int

    @property
    def residual_layers(self) -> int:
        return self.model.layers if isinstance(self.model, HasResiduals) else 0

    def residuals(self, model: Any, batch: Any) -> jax.Array:
        """(layers, n, completion_length, width), at the places where a completion is predicted."""
        params, added = model if isinstance(model, specs.Steered) else (model, None)
        found = self.model.residuals(self.merged(params), batch.tokens[:, :-1], added)
        return found[:, :, self.prompt_length - 1 :]
