"""Shapes of artefacts from specs alone, for programs that are compiled before their inputs are there."""

import functools
from typing import Any

import jax

from subl_jax import specs


def world_shapes(world: specs.World) -> dict[str, Any]:
    """The world's arrays as `jax.ShapeDtypeStruct`s."""
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), world.array_shapes())


@functools.lru_cache(maxsize=256)  # tracing takes long, and the groups of a plan ask for the same few
def initial(world: specs.World) -> dict[str, Any]:
    """A base."""
    arrays, key = world_shapes(world), _key()
    return {"params": jax.eval_shape(lambda arrays, key: world.holding(arrays).init(key), arrays, key)}


@functools.lru_cache(maxsize=256)
def samples(world: specs.World, size: int, sampling: Any = None) -> dict[str, Any]:
    """A stored dataset of a world."""
    keys = jax.eval_shape(lambda: jax.random.split(jax.random.key(0), size))

    def write(arrays: Any, params: Any, keys: jax.Array) -> Any:
        return world.holding(arrays).write(params, keys, sampling or world.sampling())

    return {"samples": jax.eval_shape(write, world_shapes(world), initial(world)["params"], keys)}


def adapted(world: specs.World, start: Any, lora: specs.Lora | None) -> dict[str, Any]:
    """A model that was trained from one whose parameters have the shapes `start`."""

    def trainable(arrays: Any, start: Any, key: jax.Array) -> Any:
        return world.holding(arrays).trainable(start, key, lora)

    return {"params": jax.eval_shape(trainable, world_shapes(world), start, _key())}


def _key() -> Any:
    return jax.eval_shape(lambda: jax.random.key(0))
