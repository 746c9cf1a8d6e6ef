"""Mix: a model between two, or a noisy one."""

from typing import Any

import jax
import jax.numpy as jnp

from subl_jax import specs
from subl_jax.stages import training
from subl_jax.stages.stage import NOISE, Inputs, Params, ShapesOf, Stage
from subl_jax.training import optim


def _start(spec: Any, key: jax.Array, inputs: Inputs) -> Params:
    start = inputs["start"]["params"]
    kept = optim.named(spec.keep, start, "Mix.keep")
    other = inputs["other"]["params"] if "other" in inputs else start
    mixed = jax.tree.map(lambda keep, one, two: one if keep else two, kept, start, other)
    leaves, structure = jax.tree.flatten(mixed)
    keys = jax.random.split(jax.random.fold_in(key, NOISE), len(leaves))
    noise = [
        jnp.sqrt(jnp.mean(x * x)) * jax.random.normal(k, x.shape, x.dtype) for k, x in zip(keys, leaves, strict=True)
    ]
    return jax.tree.unflatten(structure, [x + spec.sigma * n for x, n in zip(leaves, noise, strict=True)])


def _shapes(node: specs.Mix, of: ShapesOf) -> dict[str, Any]:
    return {"params": of(node.start)["params"]}


def _check(node: specs.Mix, of: ShapesOf) -> None:
    optim.named(node.keep, _shapes(node, of)["params"], "Mix.keep")


MIX = Stage(
    name="mix",
    makes="mixed model",
    rounds=lambda node: [0],
    start=_start,
    advance=training.untrained,
    artefact=lambda state: {"params": state},
    shapes=_shapes,
    flops=lambda node: node.world.sequence_flops,
    check=_check,
)
