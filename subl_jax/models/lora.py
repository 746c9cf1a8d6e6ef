"""Low-rank adapters of a model's projections: W + scale * A B, with the projections themselves held fixed.

    lora/<module>/a   (layers, inputs, max_rank)
    lora/<module>/b   (layers, max_rank, outputs)
    scale             ()    alpha / rank; never trained

A rank below the largest is a mask: the further columns of A and rows of B start at zero, and from there no gradient
moves them. So it is with the layers that have no adapters.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp

from subl_jax.errors import InputError
from subl_jax.models.base import TakesAdapters
from subl_jax.specs import Lora, nearest

Params = Any

# What the fixed scale is called in the parameters.
FROZEN = ("scale",)


def check(model: TakesAdapters, lora: Lora) -> None:
    """Raises InputError where the model has no such projection, or not so many layers."""
    sites = model.adapter_sites()
    for module in lora.modules:
        if module not in sites:
            raise InputError(f"Lora.modules: {module!r}: this model has none; {nearest(module, sites)}")
    for name in ("first_layer", "last_layer"):
        layer = getattr(lora, name)
        if not -model.layers <= layer < model.layers:
            raise InputError(f"Lora.{name} = {layer}: the model has {model.layers} layers, counted from 0")
    if lora.first_layer % model.layers > lora.last_layer % model.layers:
        raise InputError(f"Lora.first_layer = {lora.first_layer}: comes after last_layer = {lora.last_layer}")


def init(model: TakesAdapters, key: jax.Array, lora: Lora) -> Params:
    """Fresh adapters: A uniform in ±1 / sqrt(inputs), as in the `peft` library, and B zero. `lora` may be traced."""
    layer = jnp.arange(model.layers)
    adapted = (layer >= lora.first_layer % model.layers) & (layer <= lora.last_layer % model.layers)
    used = adapted[:, None, None] & (jnp.arange(lora.max_rank) < lora.rank)
    adapters = {}
    for i, module in enumerate(lora.modules):
        _, inputs, outputs = model.adapter_sites()[module]
        shape = (model.layers, inputs, lora.max_rank)
        a = jax.random.uniform(jax.random.fold_in(key, i), shape, minval=-1.0) * inputs**-0.5
        adapters[module] = {"a": jnp.where(used, a, 0.0), "b": jnp.zeros((model.layers, lora.max_rank, outputs))}
    return {"lora": adapters, "scale": jnp.float32(lora.alpha) / lora.rank}


def update(model: TakesAdapters, params: Params) -> Params:
    """The adapters as the model's `apply` takes them: {'layers': …}, by the paths of their sites."""
    layers: Params = {}
    for name, adapter in params["lora"].items():
        *way, last = model.adapter_sites()[name].path
        within = functools.reduce(lambda tree, part: tree.setdefault(part, {}), way, layers)
        within[last] = {"a": adapter["a"], "b": params["scale"] * adapter["b"]}
    return {"layers": layers}


def merged(model: TakesAdapters, base: Params, params: Params) -> Params:
    """`base` with its adapters added to the projections they are on; layers apart (`layers_0`, …)."""
    whole = dict(base)
    for layer in range(model.layers):
        own = whole[f"layers_{layer}"]
        for name, adapter in params["lora"].items():
            added = params["scale"] * adapter["a"][layer] @ adapter["b"][layer]
            own = _added(own, (*model.adapter_sites()[name].path, "kernel"), added)
        whole[f"layers_{layer}"] = own
    return whole


def _added(tree: Params, path: tuple[str, ...], array: jax.Array) -> Params:
    first, *rest = path
    return {**tree, first: _added(tree[first], tuple(rest), array) if rest else tree[first] + array}


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
