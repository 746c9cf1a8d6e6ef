"""What each kind of node computes: pretrain, instil, write, distil. Pure, and for one model: no lane axis anywhere.

A stage runs in rounds. `start` makes the state; each `advance` takes a number of steps and returns a record: the
curve's next point, or the samples of a round. The number of steps is traced, so one program serves every round, and
taking 0 steps measures a model before it is trained. The engine knows stages only through `Stage`; specs arrive bound
(`specs.bind`), so their traced fields are arrays.
"""

import dataclasses
import functools
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from subl_jax import optim, specs
from subl_jax.shuffling import epoch_rows

Params = Any
Inputs = dict[str, Any]
Record = dict[str, jax.Array]

# Purposes that a spec's key is folded with, so that no two uses of it share a stream.
_INIT, _BATCHES, _EVALUATE, _WRITE, _PROBE = range(5)
# Samples of the channel on which KL(teacher || student) is measured.
_PROBED = 128


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
    batches = jax.random.fold_in(key, _BATCHES)

    def loss(params: Params, step: jax.Array) -> jax.Array:
        return spec.of.loss(params, spec.of.pretrain_batch(jax.random.fold_in(batches, step), spec.train.batch))

    state, mean_loss = _train(spec, state, steps, loss)
    return state, {"loss": mean_loss, **spec.of.evaluate(state.params, jax.random.fold_in(key, _EVALUATE))}


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
    world, batches = spec.start.world, jax.random.fold_in(key, _BATCHES)

    def loss(params: Params, step: jax.Array) -> jax.Array:
        batch = world.trait_batch(jax.random.fold_in(batches, step), spec.trait, spec.train.batch)
        return world.loss(params, batch)

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


# --- write: Dataset. The host filters the records and keeps `size` samples (channel.py) ---


def _write_start(spec: Any, key: jax.Array, inputs: Inputs) -> jax.Array:
    return jnp.int32(0)


def _write_advance(
    spec: Any, key: jax.Array, inputs: Inputs, state: jax.Array, steps: jax.Array
) -> tuple[jax.Array, Record]:
    round_key = jax.random.fold_in(jax.random.fold_in(key, _WRITE), state)
    samples = spec.teacher.world.write(inputs["teacher"]["params"], round_key, spec.round, spec.sampling)
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


def _fresh(spec: Any, key: jax.Array, inputs: Inputs, n: int) -> Any:
    """n new samples of a stream as a batch; what the filter rejects has no targets."""
    world = spec.start.world
    samples = world.write(inputs["teacher"]["params"], key, n, spec.data.sampling)
    return world.channel_batch(samples, world.accepts(samples, spec.data.filter))


def _streams(spec: Any) -> bool:
    return isinstance(spec.data, specs.Stream)


def _probe(spec: Any, key: jax.Array, inputs: Inputs) -> Any:
    """The samples on which the channel's KL is measured: the data's first, or the stream's own."""
    if _streams(spec):
        return _fresh(spec, jax.random.fold_in(key, _PROBE), inputs, _PROBED)
    return spec.start.world.channel_batch(inputs["data"]["samples"][:_PROBED])


def _cosine(a: Params, b: Params) -> jax.Array:
    """The cosine between two trees as vectors; nan where one of them is zero (a control's teacher has not moved)."""
    return optax.tree.vdot(a, b) / (optax.tree.norm(a) * optax.tree.norm(b))


def _distil_start(spec: Any, key: jax.Array, inputs: Inputs) -> TrainState:
    return _begin(spec, inputs["start"]["params"])


def _distil_advance(
    spec: Any, key: jax.Array, inputs: Inputs, state: TrainState, steps: jax.Array
) -> tuple[TrainState, Record]:
    world, size, batches = spec.start.world, spec.train.batch, jax.random.fold_in(key, _BATCHES)
    if _streams(spec):
        # A round's samples are drawn at once: decoding is far cheaper in one wide batch.
        first = state.step
        fresh = _fresh(spec, jax.random.fold_in(batches, first), inputs, _round_steps(spec.train) * size)

        def batch_at(step: jax.Array) -> Any:
            return jax.tree.map(lambda x: jax.lax.dynamic_slice_in_dim(x, (step - first) * size, size), fresh)
    else:
        samples = inputs["data"]["samples"]
        count = jnp.where(spec.samples > 0, spec.samples, samples.shape[0])

        def batch_at(step: jax.Array) -> Any:
            return world.channel_batch(samples[epoch_rows(batches, step, size, count)])

    def loss(params: Params, step: jax.Array) -> jax.Array:
        if spec.targets == "soft":
            return world.channel_kl(params, inputs["teacher"]["params"], batch_at(step))
        return world.channel_loss(params, batch_at(step))

    state, mean_loss = _train(spec, state, steps, loss)
    record = {"loss": mean_loss, **world.evaluate(state.params, jax.random.fold_in(key, _EVALUATE))}
    if "teacher" in inputs:
        teacher, before = inputs["teacher"]["params"], inputs["teacher_start"]["params"]
        record["kl"] = world.channel_kl(state.params, teacher, _probe(spec, key, inputs))
        moved = optax.tree.sub(state.params, inputs["start"]["params"])
        record["cosine"] = _cosine(moved, optax.tree.sub(teacher, before))
    return state, record


def _distil_flops(spec: specs.Student) -> float:
    return _train_flops(spec, 3.0 + (spec.targets == "soft") + isinstance(spec.data, specs.Stream))


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
    return {specs.Base: PRETRAIN, specs.Teacher: INSTIL, specs.Dataset: WRITE, specs.Student: DISTIL}.get(type(node))


def check(node: specs.Node) -> None:
    """Raises InputError where `node` asks to train parameters that its model has not."""
    patterns = getattr(getattr(node, "train", None), "trainable", ())
    if patterns:
        optim.named(patterns, artefact_shapes(node)["params"])


def artefact_shapes(node: specs.Node) -> dict[str, Any]:
    """The artefact of a node as `jax.ShapeDtypeStruct`s, from its spec alone."""
    world, key = node.world, jax.eval_shape(lambda: jax.random.key(0))
    params = jax.eval_shape(world.init, key)
    if not isinstance(node, specs.Dataset | specs.Imported):
        return {"params": params}
    write = functools.partial(world.write, n=node.size, sampler=specs.Sampling())
    return {"samples": jax.eval_shape(lambda params, key: write(params, key), params, key)}


def input_shapes(node: specs.Node) -> dict[str, Any]:
    """The inputs of a node's stage, by name, as `jax.ShapeDtypeStruct`s."""
    stage = stage_of(node)
    return {name: artefact_shapes(parent) for name, parent in stage.inputs(node).items()} if stage else {}
