"""What each kind of node computes: pretrain, instil, mix, write, distil. Pure, for one model: no lane axis anywhere.

A stage runs in rounds. `start` makes the state; each `advance` takes a number of steps and returns a record: the
curve's next point, or the samples of a round. The number of steps is traced, so one program serves every round, and
taking 0 steps measures a model before it is trained. The engine knows stages only through `Stage`; specs arrive bound
(`specs.bind`), so their traced fields are arrays. The world's own arrays come with the inputs, as `world`.
"""

import dataclasses
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from subl_jax import optim, specs
from subl_jax.analysis import theory
from subl_jax.shuffling import epoch_rows, shuffled

Params = Any
Inputs = dict[str, Any]
Record = dict[str, jax.Array]

# Purposes that a spec's key is folded with, so that no two uses of it share a stream.
_INIT, _BATCHES, _EVALUATE, _WRITE, _PROBE, _NOISE, _THEORY = range(7)
# Samples of the channel on which KL(teacher || student) is measured.
_PROBED = 128
# Samples on which a trait's own loss is measured.
_THEORY_BATCH = 512


class TrainState(NamedTuple):
    params: Params
    opt: optax.OptState
    step: jax.Array  # () int32
    done: jax.Array  # () bool: a teacher that has reached its target stays as it is


@dataclasses.dataclass(frozen=True)
class Stage:
    """How one kind of node is computed.

    inputs(spec) → name → parent node; the artefacts of these reach the program under these names.
    rounds(spec) → how many steps each round takes. The first may be 0: a measurement before training.
    start(spec, key, inputs) → state; advance(spec, key, inputs, state, steps) → (state, record).
    artefact(state) → what is stored, a dict of arrays; None where the host makes it from the records.
    flops(spec) → floating-point operations of one lane.
    """

    name: str
    inputs: Callable[[Any], dict[str, specs.Node]]
    rounds: Callable[[Any], list[int]]
    start: Callable[..., Any]
    advance: Callable[..., tuple[Any, Record]]
    artefact: Callable[[Any], dict[str, Any]] | None
    flops: Callable[[Any], float]


def _world(world: Any, inputs: Inputs) -> Any:
    return world.holding(inputs.get("world", {}))


# --- training, shared by pretraining, instilling and distilling ---


def _begin(spec: Any, params: Params) -> TrainState:
    return TrainState(params, optim.transform(spec.train).init(params), jnp.int32(0), jnp.bool_(False))


def _train(
    spec: Any, state: TrainState, steps: jax.Array, loss: Callable[[Params, jax.Array], jax.Array]
) -> tuple[TrainState, jax.Array]:
    """`steps` updates by `loss(params, step)`; returns the mean loss over them (nan for none)."""
    rule = optim.transform(spec.train)

    def update(_: jax.Array, carry: tuple[TrainState, jax.Array]) -> tuple[TrainState, jax.Array]:
        state, total = carry
        value, gradient = jax.value_and_grad(loss)(state.params, state.step)
        change, opt = rule.update(gradient, state.opt, state.params)
        new = TrainState(optax.apply_updates(state.params, change), opt, state.step + 1, state.done)
        return new, total + value

    state, total = jax.lax.fori_loop(0, steps, update, (state, jnp.float32(0)))
    return state, total / steps


def _round_steps(train: specs.Train) -> int:
    """Steps of a round; `Train.check` holds that `evals` divides them all."""
    return train.steps // train.evals


def _rounds(spec: Any) -> list[int]:
    """A measurement, then the steps in `evals` equal parts."""
    return [0, *([_round_steps(spec.train)] * spec.train.evals if spec.train.steps else [])]


def _parameters(state: TrainState) -> dict[str, Any]:
    return {"params": state.params}


def _train_flops(spec: Any, forwards: float = 3.0) -> float:
    return forwards * spec.train.steps * spec.train.batch * spec.world.sequence_flops


# --- pretrain: Base ---


def _pretrain_start(spec: Any, key: jax.Array, inputs: Inputs) -> TrainState:
    return _begin(spec, spec.of.init(jax.random.fold_in(key, _INIT)))


def _pretrain_advance(
    spec: Any, key: jax.Array, inputs: Inputs, state: TrainState, steps: jax.Array
) -> tuple[TrainState, Record]:
    world, batches = _world(spec.of, inputs), jax.random.fold_in(key, _BATCHES)

    def loss(params: Params, step: jax.Array) -> jax.Array:
        return world.loss(params, world.pretrain_batch(batches, step, spec.train.batch))

    state, mean_loss = _train(spec, state, steps, loss)
    return state, {"loss": mean_loss, **world.evaluate(state.params, jax.random.fold_in(key, _EVALUATE))}


PRETRAIN = Stage(
    name="pretrain",
    inputs=lambda spec: {},
    rounds=_rounds,
    start=_pretrain_start,
    advance=_pretrain_advance,
    artefact=_parameters,
    flops=_train_flops,
)


# --- instil: Teacher ---


def _instil_start(spec: Any, key: jax.Array, inputs: Inputs) -> TrainState:
    return _begin(spec, inputs["start"]["params"])


def _instil_advance(
    spec: Any, key: jax.Array, inputs: Inputs, state: TrainState, steps: jax.Array
) -> tuple[TrainState, Record]:
    world, batches = _world(spec.start.world, inputs), jax.random.fold_in(key, _BATCHES)

    def loss(params: Params, step: jax.Array) -> jax.Array:
        return world.loss(params, world.trait_batch(batches, step, spec.trait, spec.train.batch))

    trained, mean_loss = _train(spec, state, steps, loss)
    # A teacher that has reached its target stays as it is while its neighbours train on.
    mean_loss = jnp.where(state.done, loss(state.params, state.step), mean_loss)
    state = jax.tree.map(lambda old, new: jnp.where(state.done, old, new), state, trained)
    metrics = world.evaluate(state.params, jax.random.fold_in(key, _EVALUATE))
    target = metrics["trait"][spec.trait]
    record = {"loss": mean_loss, "target": target, "steps_taken": state.step, **metrics}
    return state._replace(done=state.done | (target >= spec.until)), record


INSTIL = Stage(
    name="instil",
    inputs=lambda spec: {"start": spec.start},
    rounds=_rounds,
    start=_instil_start,
    advance=_instil_advance,
    artefact=_parameters,
    flops=_train_flops,
)


# --- mix: Mix ---


def _mix_start(spec: Any, key: jax.Array, inputs: Inputs) -> Params:
    start = inputs["start"]["params"]
    kept = optim.named(spec.keep, start, "Mix.keep")
    other = inputs["other"]["params"] if "other" in inputs else start
    mixed = jax.tree.map(lambda keep, one, two: one if keep else two, kept, start, other)
    leaves, structure = jax.tree.flatten(mixed)
    keys = jax.random.split(jax.random.fold_in(key, _NOISE), len(leaves))
    noise = [
        jnp.sqrt(jnp.mean(x * x)) * jax.random.normal(k, x.shape, x.dtype) for k, x in zip(keys, leaves, strict=True)
    ]
    return jax.tree.unflatten(structure, [x + spec.sigma * n for x, n in zip(leaves, noise, strict=True)])


def _mix_advance(spec: Any, key: jax.Array, inputs: Inputs, state: Params, steps: jax.Array) -> tuple[Params, Record]:
    world = _world(spec.start.world, inputs)
    nothing = jnp.full((), jnp.nan)  # there is no training, and so no loss
    return state, {"loss": nothing, **world.evaluate(state, jax.random.fold_in(key, _EVALUATE))}


MIX = Stage(
    name="mix",
    inputs=lambda spec: {"start": spec.start, **({} if spec.other is None else {"other": spec.other})},
    rounds=lambda spec: [0],
    start=_mix_start,
    advance=_mix_advance,
    artefact=lambda state: {"params": state},
    flops=lambda spec: spec.world.sequence_flops,
)


# --- write: Dataset. The host filters the records and keeps `size` samples (channel.py) ---


def _write_start(spec: Any, key: jax.Array, inputs: Inputs) -> jax.Array:
    return jnp.int32(0)


def _write_advance(
    spec: Any, key: jax.Array, inputs: Inputs, state: jax.Array, steps: jax.Array
) -> tuple[jax.Array, Record]:
    round_key = jax.random.fold_in(jax.random.fold_in(key, _WRITE), state)
    world, keys = _world(spec.teacher.world, inputs), jax.random.split(round_key, spec.round)
    samples = world.write(inputs["teacher"]["params"], keys, spec.sampling)
    return state + 1, {"samples": samples}


WRITE = Stage(
    name="write",
    inputs=lambda spec: {"teacher": spec.teacher},
    rounds=lambda spec: [spec.round] * math.ceil(spec.size * spec.budget / spec.round),
    start=_write_start,
    advance=_write_advance,
    artefact=None,
    flops=lambda spec: spec.size * spec.world.sequence_flops,
)


# --- distil: Student ---


def _distil_inputs(spec: specs.Student) -> dict[str, specs.Node]:
    """The start, the data, and the data's writer with what that was trained from (itself, for a base)."""
    writer = specs.source(spec)
    data = {"data": spec.data} if isinstance(spec.data, specs.Node) else {}
    if writer is None:
        return {"start": spec.start, **data}
    return {"start": spec.start, **data, "teacher": writer, "teacher_start": getattr(writer, "start", writer)}


def _streams(spec: Any) -> bool:
    return isinstance(spec.data, specs.Stream)


def _drawn(spec: Any, world: Any, key: jax.Array, inputs: Inputs, places: jax.Array) -> Any:
    """The samples of a stream at `places` (n,) int32 as a batch; what the filter rejects has no targets."""
    keys = jax.vmap(jax.random.fold_in, (None, 0))(key, places)
    samples = world.write(inputs["teacher"]["params"], keys, spec.data.sampling)
    accepted = True if spec.data.filter is None else world.accepts(samples, spec.data.filter)
    return world.channel_batch(samples, accepted, spec.data.sampling)


def _stream_places(spec: Any, key: jax.Array, step: jax.Array, steps: int) -> jax.Array:
    """Which samples of a stream the `steps` batches from `step` on hold: new ones, or all distinct ones in turn."""
    n, distinct = steps * spec.train.batch, spec.data.distinct
    fresh = step * spec.train.batch + jnp.arange(n)
    count = jnp.maximum(distinct, 1)
    return jnp.where(distinct > 0, shuffled(key, fresh % count, count, epoch=fresh // count), fresh)


def _probe(spec: Any, world: Any, key: jax.Array, inputs: Inputs) -> Any:
    """The samples on which student and teacher are compared: the data's first, or the stream's own."""
    if _streams(spec):
        return _drawn(spec, world, jax.random.fold_in(key, _PROBE), inputs, jnp.arange(_PROBED))
    return world.channel_batch(inputs["data"]["samples"][:_PROBED], True, getattr(spec.data, "sampling", None))


def _distil_start(spec: Any, key: jax.Array, inputs: Inputs) -> TrainState:
    return _begin(spec, inputs["start"]["params"])


def _distil_advance(
    spec: Any, key: jax.Array, inputs: Inputs, state: TrainState, steps: jax.Array
) -> tuple[TrainState, Record]:
    world, size, batches = _world(spec.start.world, inputs), spec.train.batch, jax.random.fold_in(key, _BATCHES)
    teacher = inputs["teacher"]["params"] if "teacher" in inputs else None
    if _streams(spec):
        samples_key, order_key = jax.random.split(batches)

        def next_batch(step: jax.Array) -> Any:
            return _drawn(spec, world, samples_key, inputs, _stream_places(spec, order_key, step, 1))

    if _streams(spec) and world.drawn_by_round:
        # Decoding is far cheaper in one wide batch.
        first = state.step
        places = _stream_places(spec, order_key, first, max(_round_steps(spec.train), 1))
        drawn = _drawn(spec, world, samples_key, inputs, places)

        def batch_at(step: jax.Array) -> Any:
            return jax.tree.map(lambda x: jax.lax.dynamic_slice_in_dim(x, (step - first) * size, size), drawn)
    elif _streams(spec):
        batch_at = next_batch
    else:
        samples = inputs["data"]["samples"]
        count = jnp.where(spec.samples > 0, spec.samples, samples.shape[0])

        def batch_at(step: jax.Array) -> Any:
            return world.channel_batch(samples[epoch_rows(batches, step, size, count)])

        next_batch = batch_at

    def loss(params: Params, step: jax.Array) -> jax.Array:
        return world.distill_loss(params, teacher, batch_at(step), spec.targets)

    state, mean_loss = _train(spec, state, steps, loss)
    record = {"loss": mean_loss, **world.evaluate(state.params, jax.random.fold_in(key, _EVALUATE))}
    if teacher is not None:
        probe, moved = _probe(spec, world, key, inputs), optax.tree.sub(state.params, inputs["start"]["params"])
        teacher_moved = optax.tree.sub(teacher, inputs["teacher_start"]["params"])
        record |= world.compare(state.params, teacher, probe)
        record["cosine"] = theory.cosine(moved, teacher_moved)
        if spec.theory is not None:
            record |= _theory(spec, world, key, inputs, state.params, next_batch(state.step))
    return state, record


def _theory(spec: Any, world: Any, key: jax.Array, inputs: Inputs, params: Params, batch: Any) -> Record:
    """The quantities of the one-step theorem, on the batch that the student trains on next."""
    trait = jnp.int32(world.traits.index(spec.theory))
    trait_batch = world.trait_batch(jax.random.fold_in(key, _THEORY), jnp.int32(0), trait, _THEORY_BATCH)
    models = [inputs[name]["params"] for name in ("start", "teacher_start", "teacher")]
    return theory.along_a_run(
        lambda student, teacher: world.distill_loss(student, teacher, batch, spec.targets),
        lambda student: world.loss(student, trait_batch),
        params,
        *models,
        spec.train.lr,
    )


def _distil_flops(spec: specs.Student) -> float:
    # A stream's samples cost a pass where they are decoded; asking the teacher costs one.
    asked = spec.targets != "hard" or not spec.world.drawn_by_round
    return _train_flops(spec, 3.0 + asked + (isinstance(spec.data, specs.Stream) and spec.world.drawn_by_round))


DISTIL = Stage(
    name="distil",
    inputs=_distil_inputs,
    rounds=_rounds,
    start=_distil_start,
    advance=_distil_advance,
    artefact=_parameters,
    flops=_distil_flops,
)


def stage_of(node: specs.Node) -> Stage | None:
    """The stage that computes `node`; None for imported data, which is read rather than computed."""
    stages = {specs.Base: PRETRAIN, specs.Teacher: INSTIL, specs.Mix: MIX, specs.Dataset: WRITE, specs.Student: DISTIL}
    return stages.get(type(node))


def check(node: specs.Node) -> None:
    """Raises InputError where `node` names parameters that its model has not."""
    patterns = getattr(getattr(node, "train", None), "trainable", ())
    if patterns:
        optim.named(patterns, artefact_shapes(node)["params"])
    if isinstance(node, specs.Mix):
        optim.named(node.keep, artefact_shapes(node)["params"], "Mix.keep")


def artefact_shapes(node: specs.Node) -> dict[str, Any]:
    """The artefact of a node as `jax.ShapeDtypeStruct`s, from its spec alone."""
    world, key = node.world, jax.eval_shape(lambda: jax.random.key(0))
    params = jax.eval_shape(world.init, key)
    if not isinstance(node, specs.Dataset | specs.Imported):
        return {"params": params}
    keys = jax.eval_shape(lambda: jax.random.split(jax.random.key(0), node.size))
    held = world.holding(world.arrays())
    return {"samples": jax.eval_shape(lambda params, keys: held.write(params, keys, specs.Sampling()), params, keys)}


def input_shapes(node: specs.Node) -> dict[str, Any]:
    """The inputs of a node's stage, by name, as `jax.ShapeDtypeStruct`s."""
    stage = stage_of(node)
    return {name: artefact_shapes(parent) for name, parent in stage.inputs(node).items()} if stage else {}
