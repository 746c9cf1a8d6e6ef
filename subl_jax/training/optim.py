"""Optax transforms whose hyperparameters are traced, so that lanes of one program may differ in them."""

import fnmatch
import re
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from optax import contrib

from subl_jax.errors import InputError
from subl_jax.specs import Train, nearest


def transform(train: Train, frozen: tuple[str, ...] = ()) -> optax.GradientTransformation:
    """The update rule of `train`, for use inside the program where its numbers are tracers.

    `frozen` are patterns of parameters that do not change even where `train.trainable` names them.

    The order is clip, precondition, decoupled weight decay (Loshchilov and Hutter 2019, arXiv 1711.05101; not for
    `adam`, whose decay is added to the gradient), then the learning rate.
    """
    clip = optax.clip_by_global_norm(jnp.where(train.clip > 0, train.clip, jnp.inf))
    decay = optax.add_decayed_weights(train.weight_decay)
    adam = optax.scale_by_adam(train.b1, train.b2, train.eps)
    rule = {
        "adamw": [adam, decay],
        "adam": [decay, adam],
        "sgd": [optax.trace(train.momentum), decay],
        "signsgd": [optax.trace(train.momentum), optax.scale_by_sign(), decay],
        "rmsprop": [
            optax.scale_by_rms(train.b2, train.eps, eps_in_sqrt=False),
            optax.trace(train.momentum),
            decay,
        ],
        "muon": [
            contrib.scale_by_muon(beta=train.b1, weight_dimension_numbers=_matrices),
            optax.stateless(lambda change, _: jax.tree.map(_by_shape, change)),
            decay,
        ],
        "frozen_adam": [scale_by_frozen_adam(train.hold, train.eps), optax.trace(train.momentum), decay],
    }[train.optimizer]
    whole = optax.chain(clip, *rule, optax.scale_by_learning_rate(lambda step: learning_rate(train, step)))
    if not train.trainable and not frozen:
        return _by_layer(train, whole) if train.by_layer else whole

    # What is frozen has no moments to keep, and the program never computes its gradient.
    chosen = optax.partition({True: whole, False: optax.set_to_zero()}, lambda params: trained(train, params, frozen))
    return _by_layer(train, chosen) if train.by_layer else chosen


def _matrices(params: Any) -> Any:
    """Of every parameter, which axes are its matrix's: the last two. Those before (layers) hold several."""
    return jax.tree.map(lambda x: contrib.MuonDimensionNumbers(-2, -1), params)


def _by_shape(change: jax.Array) -> jax.Array:
    """Muon's own factor, √(outputs / inputs) where that is above 1 (optax has it, but gives it no public name)."""
    inputs, outputs = change.shape[-2:]
    return change * max(1.0, outputs / inputs) ** 0.5


class FrozenScales(NamedTuple):
    count: jax.Array  # () int32
    v: Any  # the mean squared gradients, of the parameters' structure


def scale_by_frozen_adam(hold: jax.Array | int, eps: jax.Array | float) -> optax.GradientTransformation:
    """g / (√v + eps), v the mean of g² over the first `hold` updates, which are zero; Adam's with b1 = 0, v held."""

    def init(params: Any) -> FrozenScales:
        return FrozenScales(jnp.int32(0), jax.tree.map(jnp.zeros_like, params))

    def update(gradient: Any, state: FrozenScales, params: Any = None) -> tuple[Any, FrozenScales]:
        measuring = state.count < hold
        v = jax.tree.map(lambda v, g: v + jnp.where(measuring, g * g / hold, 0.0), state.v, gradient)
        change = jax.tree.map(lambda g, v: jnp.where(measuring, 0.0, g / (jnp.sqrt(v) + eps)), gradient, v)
        return change, FrozenScales(state.count + 1, v)

    return optax.GradientTransformation(init, update)


def trained(train: Train, params: Any, frozen: tuple[str, ...] = ()) -> Any:
    """A tree of bools in the structure of `params`: which parameters `train` changes. Raises as `named`."""
    chosen = named(train.trainable, params) if train.trainable else jax.tree.map(lambda _: True, params)
    return jax.tree.map(lambda yes, no: yes and not no, chosen, _matches(frozen, params))


def trained_paths(train: Train, frozen: tuple[str, ...], params: Any) -> set[str]:
    """The paths of these parameters."""
    pairs = zip(jax.tree.leaves(_paths(params)), jax.tree.leaves(trained(train, params, frozen)), strict=True)
    return {path for path, yes in pairs if yes}


def not_matrices(params: Any) -> list[str]:
    """The paths of parameters, or of their shapes, that are no matrices, nor one for each layer."""
    stacked = jax.tree.map(
        lambda path, x: len(x.shape) - isinstance(_layer(path, x), np.ndarray), _paths(params), params
    )
    paths = zip(jax.tree.leaves(_paths(params)), jax.tree.leaves(stacked), strict=True)
    return [path for path, axes in paths if axes != 2]


def _by_layer(train: Train, rule: optax.GradientTransformation) -> optax.GradientTransformation:
    """`rule` for the layers of `train` alone. Which these are is traced: any of them are lanes of one program."""

    def update(gradient: Any, state: Any, params: Any) -> tuple[Any, Any]:
        # The gradient is cut, so that a clip is of these layers, and the change, as weight decay needs no gradient.
        masks = within_layers(train, params)
        change, state = rule.update(jax.tree.map(_cut, masks, gradient), state, params)
        return jax.tree.map(_cut, masks, change), state

    return optax.GradientTransformation(rule.init, update)


def _cut(mask: jax.Array, x: jax.Array) -> jax.Array:
    return jnp.where(mask, x, jnp.zeros_like(x))


def within_layers(train: Train, params: Any) -> Any:
    """A tree of masks that broadcast to `params`: which entries belong to the layers of `train`, or to no layer."""
    count = layer_count(params)
    first, last = train.first_layer % count, train.last_layer % count

    def mask(path: str, x: Any) -> jax.Array:
        layer = _layer(path, x)
        if layer is None:
            return jnp.bool_(True)
        return jnp.where(first <= last, (layer >= first) & (layer <= last), (layer >= first) | (layer <= last))

    return jax.tree.map(mask, _paths(params), params)


def layer_count(params: Any) -> int:
    """How many layers parameters have, or their shapes; 0 where they have none."""
    layers = jax.tree.leaves(jax.tree.map(_layer, _paths(params), params))
    return 1 + max((int(np.max(layer)) for layer in layers), default=-1)


def _layer(path: str, x: Any) -> int | np.ndarray | None:
    """The layer of a parameter, None for none; where its first axis is the layers', their numbers, broadcasting."""
    if found := re.search(r"(?:^|/)layers_(\d+)/", path):
        return int(found[1])
    if re.match(r"layers/|lora/", path):
        return np.arange(x.shape[0]).reshape(-1, *[1] * (len(x.shape) - 1))
    return None


def named(patterns: tuple[str, ...], params: Any, where: str = "Train.trainable") -> Any:
    """A tree of bools in the structure of `params`: which parameters a path pattern names. `where` is for errors.

    Raises:
      InputError: a pattern names no parameter.
    """
    names = jax.tree.leaves(_paths(params))
    for pattern in patterns:
        if not fnmatch.filter(names, pattern):
            raise InputError(f"{where}: {pattern!r} names no parameter; {nearest(pattern, names)}")
    return _matches(patterns, params)


def _matches(patterns: tuple[str, ...], params: Any) -> Any:
    return jax.tree.map(lambda path: any(fnmatch.fnmatchcase(path, p) for p in patterns), _paths(params))


def _paths(params: Any) -> Any:
    return jax.tree.map_with_path(lambda path, _: jax.tree_util.keystr(path, simple=True, separator="/"), params)


def learning_rate(train: Train, step: jax.Array) -> jax.Array:
    """The rate at `step` (from 0): a linear warm-up over `warmup` steps, then constant or down to 0 at the end."""
    warm = jnp.minimum(1.0, (step + 1) / jnp.maximum(train.warmup, 1))
    done = jnp.clip((step - train.warmup) / jnp.maximum(train.steps - train.warmup, 1), 0.0, 1.0)
    shape = {"constant": jnp.ones_like(done), "linear": 1 - done, "cosine": 0.5 * (1 + jnp.cos(jnp.pi * done))}
    return train.lr * warm * shape[train.schedule]
