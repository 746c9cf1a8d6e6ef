"""Low-rank adapters of the transformer's projections: W + scale * A B, with the projections themselves held fixed.

    lora/<module>/a   (layers, inputs, max_rank)
    lora/<module>/b   (layers, max_rank, outputs)
    scale             ()    alpha / rank; never trained

A rank below the largest is a mask: the further columns of A and rows of B start at zero, and from there no gradient
moves them. So it is with the layers that have no adapters.
"""

from typing import Any

import jax
import jax.numpy as jnp

from subl_jax.errors import InputError
from subl_jax.models import transformer
from subl_jax.specs import Lora, nearest

Params = Any

_PARTS = {"attention": ("q", "k", "v", "o"), "mlp": ("gate", "up", "down")}
# What the fixed scale is called in the parameters.
FROZEN = ("scale",)


def sizes(config: transformer.Config) -> dict[str, tuple[int, int]]:
    """(inputs, outputs) of each projection that the model has."""
    inner, keys = config.heads * config.head_dim, config.kv_heads * config.head_dim
    attention = {"q": (config.width, inner), "k": (config.width, keys), "v": (config.width, keys)}
    mlp = {"up": (config.width, config.mlp), "down": (config.mlp, config.width)}
    gate = {"gate": (config.width, config.mlp)} if config.gated else {}
    return {**attention, "o": (inner, config.width), **mlp, **gate}


def check(config: transformer.Config, lora: Lora) -> None:
    """Raises InputError where the model has no such projection, or not so many layers."""
    for module in lora.modules:
        if module not in sizes(config):
            raise InputError(f"Lora.modules: {module!r}: this model has none; {nearest(module, sizes(config))}")
    for name in ("first_layer", "last_layer"):
        layer = getattr(lora, name)
        if not -config.layers <= layer < config.layers:
            raise InputError(f"Lora.{name} = {layer}: the model has {config.layers} layers, counted from 0")
    if lora.first_layer % config.layers > lora.last_layer % config.layers:
        raise InputError(f"Lora.first_layer = {lora.first_layer}: comes after last_layer = {lora.last_layer}")


def init(config: transformer.Config, key: jax.Array, lora: Lora) -> Params:
    """Fresh adapters: A uniform in ±1 / sqrt(inputs), as in the `peft` library, and B zero. `lora` may be traced."""
    layer = jnp.arange(config.layers)
    adapted = (layer >= lora.first_layer % config.layers) & (layer <= lora.last_layer % config.layers)
    used = adapted[:, None, None] & (jnp.arange(lora.max_rank) < lora.rank)
    adapters = {}
    for i, module in enumerate(lora.modules):
        inputs, outputs = sizes(config)[module]
        shape = (config.layers, inputs, lora.max_rank)
        a = jax.random.uniform(jax.random.fold_in(key, i), shape, minval=-1.0) * inputs**-0.5
        adapters[module] = {"a": jnp.where(used, a, 0.0), "b": jnp.zeros((config.layers, lora.max_rank, outputs))}
    return {"lora": adapters, "scale": jnp.float32(lora.alpha) / lora.rank}


def update(params: Params) -> Params:
    """The adapters as `transformer.apply` takes them."""
    scaled = {name: {"a": x["a"], "b": params["scale"] * x["b"]} for name, x in params["lora"].items()}
    parts = {part: {name: scaled[name] for name in names if name in scaled} for part, names in _PARTS.items()}
    return {"layers": parts}


def dot(one: Params, other: Params) -> jax.Array:
    """The inner product of what two sets of adapters add to the weights, without making these matrices.

    <A B, C D> = sum((A' C) * (B D')), summed over modules and layers.
    """

    def of_module(x: Params, y: Params) -> jax.Array:
        inputs = jnp.einsum("lir,lis->lrs", x["a"], y["a"])
        outputs = jnp.einsum("lro,lso->lrs", x["b"], y["b"])
        return jnp.sum(inputs * outputs)

    both = one["lora"].keys() & other["lora"].keys()
    return one["scale"] * other["scale"] * sum(of_module(one["lora"][m], other["lora"][m]) for m in sorted(both))


def cosine(one: Params, other: Params) -> jax.Array:
    """Between what two sets of adapters add to the weights; nan where one of them adds nothing."""
    return dot(one, other) / jnp.sqrt(dot(one, one) * dot(other, other))
