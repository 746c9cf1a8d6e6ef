"""Transform: a `Transformed` dataset. The program selects rows of its sources, the host rewrites what they say."""

from typing import Any

import jax
import jax.numpy as jnp

from subl_jax import specs
from subl_jax.errors import InputError
from subl_jax.stages import shapes, trial
from subl_jax.stages.rewriting import Rewriter
from subl_jax.stages.stage import SELECT, Inputs, Record, ShapesOf, Stage, asked_by, holding


def _start(spec: Any, key: jax.Array, inputs: Inputs) -> jax.Array:
    return jnp.int32(0)


def _advance(
    spec: Any, key: jax.Array, inputs: Inputs, state: jax.Array, steps: jax.Array, measure: jax.Array | bool = True
) -> tuple[jax.Array, Record]:
    """All rows at once, whatever is asked for."""
    rows = tuple(inputs[f"source{i}"]["samples"] for i in range(len(spec.sources)))
    world = holding(spec.sources[0].world, inputs)
    sources = specs.Sources(world, rows, asked_by("transform", inputs))
    selected = spec.transform.select(jax.random.fold_in(key, SELECT), sources, spec.size)
    return state + 1, {"samples": selected}


def _check(node: specs.Transformed, of: ShapesOf) -> None:
    _, record = trial.traced(node, of, _start, _advance, [node.transform])
    given, wanted = record["samples"].shape, shapes.samples(node.world, node.size)["samples"].shape
    if given != wanted:
        raise InputError(f"{type(node.transform).__name__}.select: gives samples of shape {given}; expected {wanted}")


TRANSFORM = Stage(
    name="transform",
    makes="dataset",
    rounds=lambda node: [node.size],
    start=_start,
    advance=_advance,
    artefact=None,
    shapes=lambda node, of: shapes.samples(node.world, node.size),
    flops=lambda node: 0.0,
    check=_check,
    whole=lambda node: True,
    collector=Rewriter,
)
