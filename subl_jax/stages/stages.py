"""What each kind of node computes: pretrain, instil, prompt, mix, write, distil. Pure, for one model: no lane axis.

A stage runs in rounds. `start` makes the state; `advance` takes a number of steps and, at the end of a round, returns a
record: the curve's next point, or the samples of the round. The number of steps is traced, so one program serves every
round and every part of one, and taking 0 steps measures a model before it is trained. However a round is cut into
calls, its results are the same to the bit. The engine knows stages only through `Stage`; specs arrive bound
(`specs.bind`), so their traced fields are arrays. The world's own arrays come with the inputs, as `world`.
"""

import dataclasses
import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.extend.core import jaxpr_as_fun

from subl_jax import specs
from subl_jax.errors import InputError
from subl_jax.probes import theory
from subl_jax.training import optim
from subl_jax.training.shuffling import epoch_rows, shuffled

Params = Any
Inputs = dict[str, Any]
Record = dict[str, jax.Array]

# Purposes that a spec's key is folded with, so that no two uses of it share a stream.
_INIT, _BATCHES, _EVALUATE, _WRITE, _PROBE, _NOISE, _THEORY, _ADAPT = range(8)
# Samples of the channel on which KL(teacher || student) is measured.
_PROBED = 128
# Samples on which a trait's own loss is measured.
_THEORY_BATCH = 512


class TrainState(NamedTuple):
    params: Params
    opt: optax.OptState
    step: jax.Array  # () int32
    done: jax.Array  # () bool: a teacher that has reached its target stays as it is
    since: jax.Array  # () int32: steps taken in this round
    total: jax.Array  # () float32: the sum of their losses


@dataclasses.dataclass(frozen=True)
class Stage:
    """How one kind of node is computed.

    inputs(spec) → name → parent node; the artefacts of these reach the program under these names.
    rounds(spec) → how many steps each round takes. The first may be 0: a measurement before training.
    start(spec, key, inputs) → state; advance(spec, key, inputs, state, steps, measure) → (state, record). Where
    `measure`, () bool, is false a round of training goes on: the record is zeros, and evaluating costs nothing.
    artefact(state) → what is stored, a dict of arrays; None where the host makes it from the records.
    flops(spec) → floating-point operations of one lane.
    reached(specs, record) → (lanes,) bool, on the host: which lanes stay as they are from this record on, so that all
    later records are alike; `steps_taken` of the record says after how many steps. None: all go on to the last round.
    """

    name: str
    inputs: Callable[[Any], dict[str, specs.Node]]
    rounds: Callable[[Any], list[int]]
    start: Callable[..., Any]
    advance: Callable[..., tuple[Any, Record]]
    artefact: Callable[[Any], dict[str, Any]] | None
    flops: Callable[[Any], float]
    reached: Callable[[Sequence[Any], dict[str, np.ndarray]], np.ndarray] | None = None


def _world(world: Any, inputs: Inputs) -> Any:
    return world.holding(inputs.get("world", {}))


# --- training, shared by pretraining, instilling and distilling ---


def _model(artefact: dict[str, Any]) -> Any:
    """A stored model as the world's functions take it."""
    return specs.Told(artefact["params"], artefact["told"]) if "told" in artefact else artefact["params"]


def _begin(spec: Any, world: Any, params: Params) -> TrainState:
    rule = optim.transform(spec.train, world.frozen)
    return TrainState(params, rule.init(params), jnp.int32(0), jnp.bool_(False), jnp.int32(0), jnp.float32(0))


def _adapted(spec: Any, world: Any, key: jax.Array, inputs: Inputs) -> Params:
    return world.begin(inputs["start"]["params"], jax.random.fold_in(key, _ADAPT), spec.lora)


def _train(
    spec: Any,
    world: Any,
    state: TrainState,
    steps: jax.Array,
    batch_at: Callable[[jax.Array], Any],
    loss: Callable[[Params, Any], jax.Array],
) -> TrainState:
    """`steps` updates by `loss(params, batch_at(step))`."""
    rule = optim.transform(spec.train, world.frozen)
    gradient_of = jax.value_and_grad(loss)

    def update(_: jax.Array, state: TrainState) -> TrainState:
        batch = batch_at(state.step)
        if spec.train.accumulate == 1:
            value, gradient = gradient_of(state.params, batch)
        else:
            rows = spec.train.batch // spec.train.accumulate
            value, gradient = _accumulated(gradient_of, world, rows, spec.train.batch, state.params, batch)
        change, opt = rule.update(gradient, state.opt, state.params)
        params, total = optax.apply_updates(state.params, change), state.total + value
        return TrainState(params, opt, state.step + 1, state.done, state.since + 1, total)

    return jax.lax.fori_loop(0, steps, update, state)


def _measure(
    measure: jax.Array | bool, state: TrainState, point: Callable[[jax.Array], Record]
) -> tuple[TrainState, Record]:
    """Where `measure`: the record `point(mean loss of the round)` (nan for no steps), and a new round."""

    def measured() -> Record:
        return point(state.total / state.since)

    traced, shapes = jax.make_jaxpr(measured, return_shape=True)()  # so that it is traced but once
    leaves, tree = jax.tree.flatten(shapes)
    record = jax.lax.cond(measure, jaxpr_as_fun(traced), lambda: [jnp.zeros(x.shape, x.dtype) for x in leaves])
    record = jax.tree.unflatten(tree, record)
    since, total = (jnp.where(measure, 0, x).astype(x.dtype) for x in (state.since, state.total))
    return state._replace(since=since, total=total), record


def _accumulated(
    gradient_of: Callable[[Params, Any], tuple[jax.Array, Params]],
    world: Any,
    rows: int,
    size: int,
    params: Params,
    batch: Any,
) -> tuple[jax.Array, Params]:
    """The loss of a batch, a mean over its targets, and its gradient, from parts of at most `rows` one after another.

    A world may take fewer (`World.part`), and the rest then comes in further parts.
    """
    batch = world.even(batch, rows)
    whole = jnp.maximum(world.target_count(batch), 1.0)

    def left(carry: tuple[jax.Array, Any]) -> jax.Array:
        return carry[0] < size

    def add(carry: tuple[jax.Array, Any]) -> tuple[jax.Array, Any]:
        start, total = carry
        part, taken = world.part(batch, start, rows)
        share = world.target_count(part) / whole
        return start + taken, jax.tree.map(lambda old, new: old + share * new, total, gradient_of(params, part))

    nothing = (jnp.float32(0), jax.tree.map(jnp.zeros_like, params))
    return jax.lax.while_loop(left, add, (jnp.int32(0), nothing))[1]


def _round_steps(train: specs.Train) -> int:
    """Steps of a round; `Train.check` holds that `evals` divides them all."""
    return train.steps // train.evals


def _rounds(spec: Any) -> list[int]:
    """A measurement, then the steps in `evals` equal parts."""
    return [0, *([_round_steps(spec.train)] * spec.train.evals if spec.train.steps else [])]


def _parameters(state: TrainState) -> dict[str, Any]:
    return {"params": state.params}


def _train_flops(spec: Any, asked: float = 0.0) -> float:
    """asked: forward passes of others for each sample."""
    # Forward, and backward to what is before a weight and to the weight itself, which adapters leave as it is.
    passes = (3.0 if getattr(spec, "lora", None) is None else 2.0) + asked
    return passes * spec.train.steps * spec.train.batch * spec.world.sequence_flops


def _start_from(spec: Any, key: jax.Array, inputs: Inputs) -> TrainState:
    """Training that goes on from another model."""
    world = _world(spec.start.world, inputs)
    return _begin(spec, world, _adapted(spec, world, key, inputs))


def _measured(
    spec: Any, key: jax.Array, inputs: Inputs, state: Any, steps: jax.Array, measure: jax.Array | bool = True
) -> tuple[Any, Record]:
    """A model that is not trained, and so has no loss, and one round without steps. state: what its world evaluates."""
    world = _world(spec.start.world, inputs)
    nothing = jnp.full((), jnp.nan)
    return state, {"loss": nothing, **world.evaluate(state, jax.random.fold_in(key, _EVALUATE))}


# --- pretrain: Base ---


def _pretrain_start(spec: Any, key: jax.Array, inputs: Inputs) -> TrainState:
    world = _world(spec.of, inputs)
    return _begin(spec, world, world.init(jax.random.fold_in(key, _INIT)))


def _pretrain_advance(
    spec: Any, key: jax.Array, inputs: Inputs, state: TrainState, steps: jax.Array, measure: jax.Array | bool = True
) -> tuple[TrainState, Record]:
    world, batches = _world(spec.of, inputs), jax.random.fold_in(key, _BATCHES)

    if spec.train.steps > 0:  # a world whose bases are read has no text to pretrain on
        state = _train(
            spec, world, state, steps, lambda step: world.pretrain_batch(batches, step, spec.train.batch), world.loss
        )

    def point(mean_loss: jax.Array) -> Record:
        return {"loss": mean_loss, **world.evaluate(state.params, jax.random.fold_in(key, _EVALUATE))}

    return _measure(measure, state, point)


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


def _instil_advance(
    spec: Any, key: jax.Array, inputs: Inputs, state: TrainState, steps: jax.Array, measure: jax.Array | bool = True
) -> tuple[TrainState, Record]:
    world, batches = _world(spec.start.world, inputs), jax.random.fold_in(key, _BATCHES)

    def batch_at(step: jax.Array) -> Any:
        return world.trait_batch(batches, step, spec.trait, spec.train.batch)

    # A teacher that has reached its target stays as it is while its neighbours train on.
    state = jax.lax.cond(
        state.done,
        lambda state: state,
        lambda state: _train(spec, world, state, steps, batch_at, world.loss),
        state,
    )

    def point(mean_loss: jax.Array) -> Record:
        loss = jnp.where(state.done, world.loss(state.params, batch_at(state.step)), mean_loss)
        metrics = world.evaluate(state.params, jax.random.fold_in(key, _EVALUATE))
        return {"loss": loss, "target": metrics["trait"][spec.trait], "steps_taken": state.step, **metrics}

    state, record = _measure(measure, state, point)
    return state._replace(done=state.done | (measure & (record["target"] >= spec.until))), record


def _reached(teachers: Sequence[specs.Teacher], record: dict[str, np.ndarray]) -> np.ndarray:
    """Asked as the program asks, in float32."""
    return record["target"][: len(teachers)] >= np.array([teacher.until for teacher in teachers], np.float32)


INSTIL = Stage(
    name="instil",
    inputs=lambda spec: {"start": spec.start},
    rounds=_rounds,
    start=_start_from,
    advance=_instil_advance,
    artefact=_parameters,
    flops=_train_flops,
    reached=_reached,
)


# --- prompt: Prompted ---


def _prompt_start(spec: Any, key: jax.Array, inputs: Inputs) -> specs.Told:
    return specs.Told(inputs["start"]["params"], jnp.asarray(spec.trait, jnp.int32))


PROMPT = Stage(
    name="prompt",
    inputs=lambda spec: {"start": spec.start},
    rounds=lambda spec: [0],
    start=_prompt_start,
    advance=_measured,
    artefact=lambda state: {"params": state.params, "told": state.trait},
    flops=lambda spec: spec.world.sequence_flops,
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


MIX = Stage(
    name="mix",
    inputs=lambda spec: {"start": spec.start, **({} if spec.other is None else {"other": spec.other})},
    rounds=lambda spec: [0],
    start=_mix_start,
    advance=_measured,
    artefact=lambda state: {"params": state},
    flops=lambda spec: spec.world.sequence_flops,
)


# --- write: Dataset. The host filters the records and keeps `size` samples (channel.py) ---


def _write_start(spec: Any, key: jax.Array, inputs: Inputs) -> jax.Array:
    return jnp.int32(0)


def _write_advance(
    spec: Any, key: jax.Array, inputs: Inputs, state: jax.Array, steps: jax.Array, measure: jax.Array | bool = True
) -> tuple[jax.Array, Record]:
    """A whole round, whatever is asked for."""
    round_key = jax.random.fold_in(jax.random.fold_in(key, _WRITE), state)
    world, keys = _world(spec.teacher.world, inputs), jax.random.split(round_key, spec.round)
    samples = world.write(_model(inputs["teacher"]), keys, spec.sampling)
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
    if writer is None or writer.world != spec.world:  # a model of another world cannot be asked here
        return {"start": spec.start, **data}
    return {"start": spec.start, **data, "teacher": writer, "teacher_start": getattr(writer, "start", writer)}


def _streams(spec: Any) -> bool:
    return isinstance(getattr(spec, "data", None), specs.Stream)


def _drawn(spec: Any, world: Any, key: jax.Array, inputs: Inputs, places: jax.Array) -> Any:
    """The samples of a stream at `places` (n,) int32 as a batch; what the filter rejects has no targets."""
    keys = jax.vmap(jax.random.fold_in, (None, 0))(key, places)
    samples = world.write(_model(inputs["teacher"]), keys, spec.data.sampling)
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


def _distil_advance(
    spec: Any, key: jax.Array, inputs: Inputs, state: TrainState, steps: jax.Array, measure: jax.Array | bool = True
) -> tuple[TrainState, Record]:
    world, size, batches = _world(spec.start.world, inputs), spec.train.batch, jax.random.fold_in(key, _BATCHES)
    teacher = _model(inputs["teacher"]) if "teacher" in inputs else None
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

    def loss(params: Params, batch: Any) -> jax.Array:
        return world.distill_loss(params, teacher, batch, spec.targets)

    state = _train(spec, world, state, steps, batch_at, loss)

    def point(mean_loss: jax.Array) -> Record:
        record = {"loss": mean_loss, **world.evaluate(state.params, jax.random.fold_in(key, _EVALUATE))}
        if teacher is not None:
            record |= world.compare(state.params, teacher, _probe(spec, world, key, inputs))
            models = (state.params, *(inputs[name]["params"] for name in ("start", "teacher", "teacher_start")))
            record["cosine"] = getattr(world, "cosine", _cosine)(*models)
            if spec.theory is not None:
                record |= _theory(spec, world, key, inputs, state.params, next_batch(state.step))
        return record

    return _measure(measure, state, point)


def _cosine(params: Params, start: Params, teacher: Params, teacher_start: Params) -> jax.Array:
    """Between the moves of a student and of its teacher."""
    return theory.cosine(optax.tree.sub(params, start), optax.tree.sub(teacher, teacher_start))


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
    return _train_flops(spec, asked + (isinstance(spec.data, specs.Stream) and spec.world.drawn_by_round))


DISTIL = Stage(
    name="distil",
    inputs=_distil_inputs,
    rounds=_rounds,
    start=_start_from,
    advance=_distil_advance,
    artefact=_parameters,
    flops=_distil_flops,
)


def draws(node: specs.Node) -> bool:
    """Whether each `advance` draws all samples of its round, however few its steps: it is then best left whole."""
    return isinstance(node, specs.Dataset) or (_streams(node) and node.world.drawn_by_round)


def stage_of(node: specs.Node) -> Stage | None:
    """The stage that computes `node`; None for imported data, which is read rather than computed."""
    stages = {
        specs.Base: PRETRAIN,
        specs.Teacher: INSTIL,
        specs.Prompted: PROMPT,
        specs.Mix: MIX,
        specs.Dataset: WRITE,
        specs.Student: DISTIL,
    }
    return stages.get(type(node))


def check(node: specs.Node) -> None:
    """Raises InputError where `node` names parameters that its model has not, or asks what its world cannot do."""
    patterns = getattr(getattr(node, "train", None), "trainable", ())
    if patterns:
        optim.named(patterns, artefact_shapes(node)["params"])
    if isinstance(node, specs.Mix):
        optim.named(node.keep, artefact_shapes(node)["params"], "Mix.keep")
    if getattr(getattr(node, "train", None), "accumulate", 1) > 1 and not hasattr(node.world, "part"):
        raise InputError(f"Train.accumulate: {node.world.name} computes a batch in one piece; leave it at 1")


def world_shapes(world: specs.World) -> dict[str, Any]:
    """The world's arrays as `jax.ShapeDtypeStruct`s."""
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), world.array_shapes())


def artefact_shapes(node: specs.Node) -> dict[str, Any]:
    """The artefact of a node as `jax.ShapeDtypeStruct`s, from its spec alone."""
    world, key = node.world, jax.eval_shape(lambda: jax.random.key(0))
    arrays = world_shapes(world)
    if isinstance(node, specs.Base):
        return {"params": jax.eval_shape(lambda arrays, key: world.holding(arrays).init(key), arrays, key)}
    if isinstance(node, specs.Dataset | specs.Imported):
        params = artefact_shapes(specs.Base(world, specs.Train(steps=0, batch=1)))["params"]
        keys = jax.eval_shape(lambda: jax.random.split(jax.random.key(0), node.size))
        sampling = getattr(node, "sampling", None) or world.sampling()

        def write(arrays: Any, params: Params, keys: jax.Array) -> Any:
            return world.holding(arrays).write(params, keys, sampling)

        return {"samples": jax.eval_shape(write, arrays, params, keys)}
    start = artefact_shapes(node.start)["params"]
    if isinstance(node, specs.Prompted):
        return {"params": start, "told": jax.ShapeDtypeStruct((), jnp.int32)}
    if isinstance(node, specs.Mix):
        return {"params": start}

    def begin(arrays: Any, start: Params, key: jax.Array) -> Params:
        return world.holding(arrays).begin(start, key, node.lora)

    return {"params": jax.eval_shape(begin, arrays, start, key)}


def input_shapes(node: specs.Node) -> dict[str, Any]:
    """The inputs of a node's stage, by name, as `jax.ShapeDtypeStruct`s."""
    stage = stage_of(node)
    return {name: artefact_shapes(parent) for name, parent in stage.inputs(node).items()} if stage else {}
