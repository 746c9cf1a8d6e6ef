"""The residual stream of the transformer: what it is after each layer, and the model with something added to it."""

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from subl_jax.errors import InputError
from subl_jax.models.transformer.network import Block, Params, Transformer

if TYPE_CHECKING:
    from subl_jax.models.transformer.model import Config


def residuals(config: "Config", params: Params, tokens: jax.Array, added: jax.Array | None = None) -> jax.Array:
    """What flows on after each layer: tokens (n, length) → (layers, n, length, width) float32.

    added: (layers, width), as of `steered`; what is read includes it.
    """
    found: dict[str, jax.Array] = {}

    def keep(layer: str, x: jax.Array) -> jax.Array:
        found[layer] = x if added is None else _with(added, layer, x)
        return found[layer]

    _run(config, params, tokens, None, keep)
    stacked = jnp.stack([found[f"layers_{i}"] for i in range(config.layers)])
    return stacked.reshape(config.layers, *tokens.shape, -1).astype(jnp.float32)


def steered(config: "Config", params: Params, tokens: jax.Array, added: jax.Array, at: jax.Array | None) -> jax.Array:
    """Logits, as of `Config.apply`, where `added` (layers, width) is added after each layer, at every token."""

    def add(layer: str, x: jax.Array) -> jax.Array:
        return _with(added, layer, x)

    return _run(config, params, tokens, at, add)


def _with(added: jax.Array, layer: str, x: jax.Array) -> jax.Array:
    return x + added[int(layer.removeprefix("layers_"))].astype(x.dtype)


def _run(
    config: "Config",
    params: Params,
    tokens: jax.Array,
    at: jax.Array | None,
    change: Callable[[str, jax.Array], jax.Array],
) -> jax.Array:
    """The logits, where `change(name of a layer, x (n * length, width))` stands in for what the layer gives."""
    if config.scan_layers:
        raise InputError("the residual stream can be read of layers that lie apart; set scan_layers = False")

    def intercept(call: Callable[..., Any], args: Any, kwargs: Any, context: Any) -> Any:
        result = call(*args, **kwargs)
        if not isinstance(context.module, Block) or context.method_name != "__call__":
            return result
        (x, cache), rest = result
        return (change(context.module.name, x), cache), rest

    with nn.intercept_methods(intercept):
        return Transformer(config).apply({"params": params}, tokens, logits_at=at)[0]
