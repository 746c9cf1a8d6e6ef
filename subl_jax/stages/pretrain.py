"""Pretrain: a `Base`, from fresh parameters on the world's own text."""

from typing import Any

import jax

from subl_jax.stages import shapes, training
from subl_jax.stages.stage import BATCHES, EVALUATE, INIT, Inputs, Record, ShapesOf, Stage, holding


def _start(spec: Any, key: jax.Array, inputs: Inputs) -> training.TrainState:
    world = holding(spec.of, inputs)
    return training.initial_state(spec, world, world.init(jax.random.fold_in(key, INIT)))


def _advance(
    spec: Any,
    key: jax.Array,
    inputs: Inputs,
    state: training.TrainState,
    steps: jax.Array,
    measure: jax.Array | bool = True,
) -> tuple[training.TrainState, Record]:
    world, batches = holding(spec.of, inputs), jax.random.fold_in(key, BATCHES)
    if spec.train.steps > 0:  # a world whose bases are loaded has no text to pretrain on

        def batch_at(step: jax.Array) -> Any:
            return world.pretrain_batch(batches, step, spec.train.batch)

        state = training.updates(spec, world, state, steps, batch_at, world.loss)

    def point(mean_loss: jax.Array) -> Record:
        return {"loss": mean_loss, **world.evaluate(state.params, jax.random.fold_in(key, EVALUATE))}

    return training.measured(measure, state, point)


def _shapes(node: Any, of: ShapesOf) -> dict[str, Any]:
    return shapes.initial(node.world)


PRETRAIN = Stage(
    name="pretrain",
    makes="base",
    rounds=training.rounds,
    start=_start,
    advance=_advance,
    artefact=training.parameters,
    shapes=_shapes,
    flops=lambda node: training.flops(node, adapters=False),
    check=lambda node, of: training.check_trainable(node, _shapes(node, of)),
)
