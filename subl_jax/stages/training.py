"""Training, shared by pretraining, instilling and distilling: updates, microbatches, rounds with a measurement.

However a round is cut into calls, its results are the same to the bit: the state carries the losses so far.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.extend.core import jaxpr_as_fun

from subl_jax import specs
from subl_jax.errors import InputError
from subl_jax.stages import shapes
from subl_jax.stages.stage import ADAPT, EVALUATE, Inputs, Params, Record, ShapesOf, holding
from subl_jax.training import optim


class TrainState(NamedTuple):
    params: Params
    opt: optax.OptState
    step: jax.Array  # () int32
    done: jax.Array  # () bool: a teacher that has reached its target stays as it is
    since: jax.Array  # () int32: steps taken in this round
    total: jax.Array  # () float32: the sum of their losses


def _rule(spec: Any, world: specs.World) -> optax.GradientTransformation:
    return optim.transform(spec.train, _frozen(spec, world))


def _frozen(spec: Any, world: specs.World) -> tuple[str, ...]:
    # Only what is trained by adapters has parameters that stay as they are.
    return world.frozen if isinstance(spec, specs.Tuned) and spec.lora is not None else ()


def initial_state(spec: Any, world: specs.World, params: Params) -> TrainState:
    rule = _rule(spec, world)
    return TrainState(params, rule.init(params), jnp.int32(0), jnp.bool_(False), jnp.int32(0), jnp.float32(0))


def start_from_another(spec: Any, key: jax.Array, inputs: Inputs) -> TrainState:
    """The state of training that goes on from the model `start`, with fresh adapters where it asks for them."""
    world = holding(spec.start.world, inputs)
    params = world.trainable(inputs["start"]["params"], jax.random.fold_in(key, ADAPT), spec.lora)
    return initial_state(spec, world, params)


def updates(
    spec: Any,
    world: specs.World,
    state: TrainState,
    steps: jax.Array,
    batch_at: Callable[[jax.Array], Any],
    loss: Callable[[Params, Any], jax.Array],
) -> TrainState:
    """`steps` updates by `loss(params, batch_at(step))`."""
    rule = _rule(spec, world)
    gradient_of = jax.value_and_grad(loss)

    def update(_: jax.Array, state: TrainState) -> TrainState:
        batch = batch_at(state.step)
        if spec.train.accumulate == 1:
            value, gradient = gradient_of(state.params, batch)
        else:
            rows = spec.train.batch // spec.train.accumulate
            value, gradient = accumulated(gradient_of, world, rows, spec.train.batch, state.params, batch)
        change, opt = rule.update(gradient, state.opt, state.params)
        params, total = optax.apply_updates(state.params, change), state.total + value
        return TrainState(params, opt, state.step + 1, state.done, state.since + 1, total)

    return jax.lax.fori_loop(0, steps, update, state)


def accumulated(
    gradient_of: Callable[[Params, Any], tuple[jax.Array, Params]],
    world: Any,
    rows: int,
    size: int,
    params: Params,
    batch: Any,
) -> tuple[jax.Array, Params]:
    """The loss of a batch, a mean over its targets, and its gradient, from microbatches of at most `rows`.

    A world may take fewer rows at a time (`Microbatches.microbatch`), and the rest then comes in further microbatches.
    """
    batch = world.balanced(batch, rows)
    whole = jnp.maximum(world.target_count(batch), 1.0)

    def left(carry: tuple[jax.Array, Any]) -> jax.Array:
        return carry[0] < size

    def add(carry: tuple[jax.Array, Any]) -> tuple[jax.Array, Any]:
        start, total = carry
        some, taken = world.microbatch(batch, start, rows)
        share = world.target_count(some) / whole
        return start + taken, jax.tree.map(lambda old, new: old + share * new, total, gradient_of(params, some))

    nothing = (jnp.float32(0), jax.tree.map(jnp.zeros_like, params))
    return jax.lax.while_loop(left, add, (jnp.int32(0), nothing))[1]


def measured(
    measure: jax.Array | bool, state: TrainState, point: Callable[[jax.Array], Record]
) -> tuple[TrainState, Record]:
    """Where `measure`: the record `point(mean loss of the round)` (nan for no steps), and a new round."""

    def of_round() -> Record:
        return point(state.total / state.since)

    traced, forms = jax.make_jaxpr(of_round, return_shape=True)()  # so that it is traced but once
    leaves, tree = jax.tree.flatten(forms)
    record = jax.lax.cond(measure, jaxpr_as_fun(traced), lambda: [jnp.zeros(x.shape, x.dtype) for x in leaves])
    record = jax.tree.unflatten(tree, record)
    since, total = (jnp.where(measure, 0, x).astype(x.dtype) for x in (state.since, state.total))
    return state._replace(since=since, total=total), record


def untrained(
    spec: Any, key: jax.Array, inputs: Inputs, state: Any, steps: jax.Array, measure: jax.Array | bool = True
) -> tuple[Any, Record]:
    """`advance` of a model that is not trained, and so has no loss. state: what its world evaluates."""
    world = holding(spec.start.world, inputs)
    nothing = jnp.full((), jnp.nan)
    return state, {"loss": nothing, **world.evaluate(state, jax.random.fold_in(key, EVALUATE))}


def round_steps(train: specs.Train) -> int:
    """Steps of a round; `Train.check` holds that `evals` divides them all."""
    return train.steps // train.evals


def rounds(node: Any) -> list[int]:
    """A measurement, then the steps in `evals` equal parts."""
    return [0, *([round_steps(node.train)] * node.train.evals if node.train.steps else [])]


def parameters(state: TrainState) -> dict[str, Any]:
    return {"params": state.params}


def flops(node: Any, adapters: bool, asked: float = 0.0) -> float:
    """Of a whole training. asked: forward passes of others for each sample."""
    # Forward, and backward to what is before a weight and to the weight itself, which adapters leave as it is.
    passes = (2.0 if adapters else 3.0) + asked
    return passes * node.train.steps * node.train.batch * node.world.sequence_flops


def tuned_shapes(node: specs.Tuned, of: ShapesOf) -> dict[str, Any]:
    """The artefact of a trained model."""
    return shapes.adapted(node.world, of(node.start)["params"], node.lora)


def check_tuned(node: specs.Tuned, of: ShapesOf) -> None:
    check_trainable(node, tuned_shapes(node, of))


def check_trainable(node: Any, artefact: dict[str, Any]) -> None:
    """Raises InputError where `Train` names parameters or layers that the model has not."""
    if node.train.trainable:
        optim.named(node.train.trainable, artefact["params"])
    if node.train.optimizer == "muon":
        params = artefact["params"]
        wrong = optim.trained_paths(node.train, _frozen(node, node.world), params) & set(optim.not_matrices(params))
        if wrong:
            raise InputError(
                f"Train.optimizer = 'muon': trains matrices only, and {sorted(wrong)[0]!r} is none; name the matrices "
                "in Train.trainable"
            )
    if node.train.by_layer:
        layers = optim.layer_count(artefact["params"])
        for name in ("first_layer", "last_layer"):
            layer = getattr(node.train, name)
            if not -layers <= layer < layers:
                raise InputError(f"Train.{name} = {layer}: the model has {layers} layers, counted from 0")
