"""Prompt: a `Prompted`, another model's parameters with a system prompt before all it reads."""

from typing import Any

import jax
import jax.numpy as jnp

from subl_jax import specs
from subl_jax.stages import training
from subl_jax.stages.stage import Inputs, Stage


def _start(spec: Any, key: jax.Array, inputs: Inputs) -> specs.SystemPrompted:
    return specs.SystemPrompted(inputs["start"]["params"], jnp.asarray(spec.trait, jnp.int32))


PROMPT = Stage(
    name="prompt",
    makes="prompted teacher",
    rounds=lambda node: [0],
    start=_start,
    advance=training.untrained,
    artefact=lambda state: {"params": state.params, "told": state.trait},
    shapes=lambda node, of: {"params": of(node.start)["params"], "told": jax.ShapeDtypeStruct((), jnp.int32)},
    flops=lambda node: node.world.sequence_flops,
)
