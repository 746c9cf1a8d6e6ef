"""Write: a `Dataset`. The program draws samples, round by round; the host filters them and keeps `size`."""

import math
from typing import Any

import jax
import jax.numpy as jnp

from subl_jax import specs
from subl_jax.stages import shapes
from subl_jax.stages.collecting import Collector
from subl_jax.stages.stage import WRITE as PURPOSE
from subl_jax.stages.stage import Inputs, Record, Stage, holding


def _start(spec: Any, key: jax.Array, inputs: Inputs) -> jax.Array:
    return jnp.int32(0)


def _advance(
    spec: Any, key: jax.Array, inputs: Inputs, state: jax.Array, steps: jax.Array, measure: jax.Array | bool = True
) -> tuple[jax.Array, Record]:
    """A whole round, whatever is asked for."""
    round_key = jax.random.fold_in(jax.random.fold_in(key, PURPOSE), state)
    world, keys = holding(spec.teacher.world, inputs), jax.random.split(round_key, spec.round)
    samples = world.write(specs.model_of(inputs["teacher"]), keys, spec.sampling)
    return state + 1, {"samples": samples}


def _rounds(node: specs.Dataset) -> list[int]:
    return [node.round] * math.ceil(node.size * node.budget / node.round)


WRITE = Stage(
    name="write",
    makes="dataset",
    rounds=_rounds,
    start=_start,
    advance=_advance,
    artefact=None,
    shapes=lambda node, of: shapes.samples(node.world, node.size, node.sampling),
    flops=lambda node: node.size * node.world.sequence_flops,
    whole=lambda node: True,
    collector=Collector,
)
