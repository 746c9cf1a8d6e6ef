"""Distil: a `Student`, trained on what a teacher wrote, by whatever objective it has."""

from typing import Any

import jax
import jax.numpy as jnp
import optax

from subl_jax import objectives, probes, specs
from subl_jax.stages import training, trial
from subl_jax.stages.stage import (
    BATCHES,
    EVALUATE,
    MEMBERS,
    PROBE,
    THEORY,
    Inputs,
    Params,
    Record,
    ShapesOf,
    Stage,
    asked_by,
    holding,
)
from subl_jax.training.shuffling import epoch_rows, shuffled

# Samples of the channel on which student and teacher are compared.
_PROBED = 128


class _Samples:
    """What a student trains on, step by step: rows of its dataset, or samples of a stream."""

    def __init__(self, spec: Any, world: specs.World, key: jax.Array, inputs: Inputs) -> None:
        self._spec, self._world, self._key, self._inputs = spec, world, key, inputs
        batches = jax.random.fold_in(key, BATCHES)
        if spec.data.streamed:
            self._drawing, self._order = jax.random.split(batches)
        else:
            self._order = batches
            samples = inputs["data"]["samples"]
            self._count = jnp.where(spec.samples > 0, spec.samples, samples.shape[0])

    def rows(self, step: jax.Array) -> jax.Array | None:
        """(batch,) int32: the rows of the dataset that a step trains on; None of a stream."""
        if self._spec.data.streamed:
            return None
        return epoch_rows(self._order, step, self._spec.train.batch, self._count)

    def at(self, step: jax.Array) -> Any:
        """The batch of a step."""
        if self._spec.data.streamed:
            return self._drawn(self._drawing, self._places(step, 1))
        return self._world.channel_batch(self._inputs["data"]["samples"][self.rows(step)])

    def of_round(self, first: jax.Array) -> Any:
        """As `at`, for the steps of a round from `first` on."""
        if not (self._spec.data.streamed and self._world.drawn_by_round):
            return self.at
        # Decoding is far cheaper in one wide batch.
        size = self._spec.train.batch
        drawn = self._drawn(self._drawing, self._places(first, max(training.round_steps(self._spec.train), 1)))
        return lambda step: jax.tree.map(lambda x: jax.lax.dynamic_slice_in_dim(x, (step - first) * size, size), drawn)

    def probed(self) -> Any:
        """The samples on which student and teacher are compared: the data's first, or the stream's own."""
        if self._spec.data.streamed:
            return self._drawn(jax.random.fold_in(self._key, PROBE), jnp.arange(_PROBED))
        return self._world.channel_batch(self._inputs["data"]["samples"][:_PROBED], True, None)

    def _places(self, step: jax.Array, steps: int) -> jax.Array:
        """Which samples of a stream the `steps` batches from `step` on hold: new ones, or all distinct ones in turn."""
        n, distinct = steps * self._spec.train.batch, self._spec.data.distinct
        fresh = step * self._spec.train.batch + jnp.arange(n)
        count = jnp.maximum(distinct, 1)
        return jnp.where(distinct > 0, shuffled(self._order, fresh % count, count, epoch=fresh // count), fresh)

    def _drawn(self, key: jax.Array, places: jax.Array) -> Any:
        """The samples of a stream at `places` (n,) int32 as a batch; what the filter rejects has no targets."""
        data, world = self._spec.data, self._world
        keys = jax.vmap(jax.random.fold_in, (None, 0))(key, places)
        samples = world.write(specs.model_of(self._inputs["teacher"]), keys, data.sampling)
        accepted = True if data.filter is None else world.accepts(samples, data.filter)
        return world.channel_batch(samples, accepted, data.sampling)


def _advance(
    spec: Any,
    key: jax.Array,
    inputs: Inputs,
    state: training.TrainState,
    steps: jax.Array,
    measure: jax.Array | bool = True,
) -> tuple[training.TrainState, Record]:
    world = holding(spec.start.world, inputs)
    samples = _Samples(spec, world, key, inputs)
    objective = spec.objective or objectives.SHORTHANDS[spec.targets]
    teacher = specs.model_of(inputs["teacher"]) if "teacher" in inputs else None
    own_key = jax.random.fold_in(key, MEMBERS)

    def context(who: str) -> specs.Context:
        return specs.Context(world, own_key, inputs["start"]["params"], teacher, asked_by(who, inputs))

    of_objective = objective.ready(context("objective"))
    drawn_at = samples.of_round(state.step)

    def batch_at(step: jax.Array) -> Any:
        return objective.prepare(of_objective, drawn_at(step), samples.rows(step))

    def loss(params: Params, batch: Any) -> jax.Array:
        return objective.loss(of_objective, params, batch)

    state = training.updates(spec, world, state, steps, batch_at, loss)

    def moment(who: str, params: Params) -> specs.Moment:
        batch = objective.prepare(of_objective, samples.at(state.step), samples.rows(state.step))

        def distance(params: Params, teacher: Any) -> jax.Array:
            return objective.loss(of_objective._replace(teacher=teacher), params, batch)

        start = inputs["teacher_start"]["params"] if "teacher_start" in inputs else None
        return specs.Moment(context(who), params, start, spec.train.lr, batch, samples.probed(), distance)

    def point(mean_loss: jax.Array) -> Record:
        record = {"loss": mean_loss, **world.evaluate(state.params, jax.random.fold_in(key, EVALUATE))}
        if teacher is not None:
            record |= world.compare(state.params, teacher, samples.probed())
            record["cosine"] = _cosine(world, state.params, *(inputs[name]["params"] for name in _MOVES))
        if spec.theory is not None:
            of_theory = moment("theory", state.params)
            of_theory = of_theory._replace(context=of_theory.context._replace(key=jax.random.fold_in(key, THEORY)))
            record |= probes.Theorem(spec.theory).measure(of_theory)
        for i, probe in enumerate(spec.probes):
            record |= probe.measure(moment(f"probes.{i}", state.params))
        return record

    return training.measured(measure, state, point)


_MOVES = ("start", "teacher", "teacher_start")


def _cosine(world: specs.World, params: Params, start: Params, teacher: Params, teacher_start: Params) -> jax.Array:
    """Between the moves of a student and of its teacher, () float32."""
    if isinstance(world, specs.OwnGeometry):
        return world.cosine(params, start, teacher, teacher_start)
    params, start, teacher, teacher_start = map(world.merged, (params, start, teacher, teacher_start))
    return probes.cosine(optax.tree.sub(params, start), optax.tree.sub(teacher, teacher_start))


def _flops(node: specs.Student) -> float:
    # A stream's samples cost a pass where they are decoded; asking the teacher costs one.
    by_round = node.world.drawn_by_round
    asked = (node.asks_teacher or not by_round) + (node.data.streamed and by_round)
    return training.flops(node, node.lora is not None, asked)


def _check(node: specs.Student, of: ShapesOf) -> None:
    training.check_tuned(node, of)
    members = [*([node.objective] if node.objective else []), *node.probes]
    if members:
        _, record = trial.traced(node, of, training.start_from_another, _advance, members)
        trial.check_metrics(record, node.probes)


DISTIL = Stage(
    name="distil",
    makes="student",
    rounds=training.rounds,
    start=training.start_from_another,
    advance=_advance,
    artefact=training.parameters,
    shapes=training.tuned_shapes,
    flops=_flops,
    check=_check,
    whole=lambda node: node.data.streamed and node.world.drawn_by_round,
)
