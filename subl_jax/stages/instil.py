"""Instil: a `Teacher`, from another model on data with a trait, until P(trait) is where it should be."""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from subl_jax import specs
from subl_jax.stages import training
from subl_jax.stages.stage import BATCHES, EVALUATE, Inputs, Record, Stage, holding


def _advance(
    spec: Any,
    key: jax.Array,
    inputs: Inputs,
    state: training.TrainState,
    steps: jax.Array,
    measure: jax.Array | bool = True,
) -> tuple[training.TrainState, Record]:
    world, batches = holding(spec.start.world, inputs), jax.random.fold_in(key, BATCHES)

    def batch_at(step: jax.Array) -> Any:
        return world.trait_batch(batches, step, spec.trait, spec.train.batch)

    # A teacher that has reached its target stays as it is while its neighbours train on.
    state = jax.lax.cond(
        state.done,
        lambda state: state,
        lambda state: training.updates(spec, world, state, steps, batch_at, world.loss),
        state,
    )

    def point(mean_loss: jax.Array) -> Record:
        loss = jnp.where(state.done, world.loss(state.params, batch_at(state.step)), mean_loss)
        metrics = world.evaluate(state.params, jax.random.fold_in(key, EVALUATE))
        return {"loss": loss, "target": metrics["trait"][spec.trait], "steps_taken": state.step, **metrics}

    state, record = training.measured(measure, state, point)
    return state._replace(done=state.done | (measure & (record["target"] >= spec.until))), record


def _reached(teachers: Sequence[specs.Teacher], record: dict[str, np.ndarray]) -> np.ndarray:
    """Asked as the program asks, in float32."""
    return record["target"][: len(teachers)] >= np.array([teacher.until for teacher in teachers], np.float32)


INSTIL = Stage(
    name="instil",
    makes="teacher",
    rounds=training.rounds,
    start=training.start_from_another,
    advance=_advance,
    artefact=training.parameters,
    shapes=training.tuned_shapes,
    flops=lambda node: training.flops(node, adapters=node.lora is not None),
    check=training.check_tuned,
    reached=_reached,
)
