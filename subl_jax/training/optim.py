"""Optax transforms whose hyperparameters are traced, so that lanes of one program may differ in them."""

import fnmatch
from typing import Any

import jax
import jax.numpy as jnp
import optax

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
    }[train.optimizer]
    whole = optax.chain(clip, *rule, optax.scale_by_learning_rate(lambda step: learning_rate(train, step)))
    if not train.trainable and not frozen:
        return whole

    # What is frozen has no moments to keep, and the program never computes its gradient.
    return optax.partition({True: whole, False: optax.set_to_zero()}, lambda params: trained(train, params, frozen))


def trained(train: Train, params: Any, frozen: tuple[str, ...] = ()) -> Any:
    """A tree of bools in the structure of `params`: which parameters `train` changes. Raises as `named`."""
    chosen = named(train.trainable, params) if train.trainable else jax.tree.map(lambda _: True, params)
    return jax.tree.map(lambda yes, no: yes and not no, chosen, _matches(frozen, params))


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
