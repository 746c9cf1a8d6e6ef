"""A world's functions as programs, compiled once for what they are given: one by one, each operation would be."""

import dataclasses
import functools
from typing import Any

import distances
import jax

from subl_jax import specs


@functools.partial(jax.jit, static_argnums=(0, 1, 2))
def _program(world, method, static, held, arguments):
    return getattr(world.holding(held), method)(*arguments, *static)


def call(world: specs.World, method: str, *arguments: Any, static: tuple[Any, ...] = ()) -> Any:
    """What a method gives, as numpy arrays; `static`: its last arguments, which are no arrays."""
    return jax.device_get(_program(_plain(world), method, static, world.held, arguments))


@functools.partial(jax.jit, static_argnums=(0, 1))
def _distance(world, targets, held, params, teacher, batch):
    return distances.distance(world.holding(held), params, teacher, batch, targets)


def distance(world: specs.World, params: Any, teacher: Any, batch: Any, targets: str) -> jax.Array:
    """As that of `distances`."""
    return _distance(_plain(world), targets, world.held, params, teacher, batch)


def _plain(world: specs.World) -> specs.World:
    """Without what it holds, which is an argument."""
    return dataclasses.replace(world)
