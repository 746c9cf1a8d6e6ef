"""Audit: what an `Audited` corpus tells of its writer, beside corpora that are known to be harmless."""

from typing import Any

import jax
import jax.numpy as jnp

from subl_jax import specs
from subl_jax.errors import InputError
from subl_jax.stages import trial
from subl_jax.stages.shapes import world_shapes
from subl_jax.stages.stage import MEMBERS, Inputs, Params, Record, ShapesOf, Stage, asked_by, holding


def _start(spec: Any, key: jax.Array, inputs: Inputs) -> dict[str, Any]:
    """All scores: there is nothing to train, and each corpus is read but once."""
    world = holding(spec.by.world, inputs)
    context = specs.Context(
        world, jax.random.fold_in(key, MEMBERS), inputs["start"]["params"], None, asked_by("audit", inputs)
    )
    scores = spec.audit.score(context, inputs["data"]["samples"])
    null = [spec.audit.score(context, inputs[f"null{i}"]["samples"]).corpus for i in range(len(spec.null))]
    return {"scores": scores, "null": jnp.stack(null) if null else jnp.zeros((0,))}


def _advance(
    spec: Any, key: jax.Array, inputs: Inputs, state: Params, steps: jax.Array, measure: jax.Array | bool = True
) -> tuple[Params, Record]:
    corpus, null = state["scores"].corpus, state["null"]
    p = rank_p(corpus, null) if len(spec.null) else jnp.full((), jnp.nan)
    gains = state["scores"].gains
    names = () if gains is None else spec.by.world.traits
    predicted = {f"gain/{trait}": gains[i] for i, trait in enumerate(names)}
    return state, {"loss": jnp.full((), jnp.nan), "corpus": corpus, "p": p, **predicted}


def rank_p(corpus: jax.Array, null: jax.Array) -> jax.Array:
    """How often a harmless corpus looks at least this unusual: (1 + those that do) / (1 + all), never 0.

    The probability of a false alarm at p ≤ a is at most a where the corpus is exchangeable with those of the null
    (Phipson and Smyth 2010, "Permutation p-values should never be zero"). corpus: (); null: (m,).
    """
    return (1 + jnp.sum(null >= corpus)) / (1 + len(null))


def _shapes(node: specs.Audited, of: ShapesOf) -> dict[str, Any]:
    def weights(samples: jax.Array, arrays: Inputs) -> jax.Array:
        world = node.world.holding(arrays)
        return world.target_weights(world.channel_batch(samples))

    places = jax.eval_shape(weights, of(node.data)["samples"], world_shapes(node.world))
    return {
        "tokens": jax.ShapeDtypeStruct(places.shape, jnp.float32),
        "samples": jax.ShapeDtypeStruct(places.shape[:1], jnp.float32),
        **{name: jax.ShapeDtypeStruct(shape, jnp.float32) for name, shape in node.audit.keeps(node).items()},
    }


def _check(node: specs.Audited, of: ShapesOf) -> None:
    state, _ = trial.traced(node, of, _start, _advance, [node.audit])
    scores = state["scores"]
    where = f"{type(node.audit).__name__}.score"
    given = {"tokens": scores.tokens, "samples": scores.samples, "corpus": scores.corpus, **(scores.kept or {})}
    wanted = {name: x.shape for name, x in _shapes(node, of).items()} | {"corpus": ()}
    if scores.gains is not None:
        given["gains"], wanted["gains"] = scores.gains, (len(node.world.traits),)
    for name in given.keys() ^ wanted.keys():
        raise InputError(f"{where}: {name} is {'kept and not declared' if name in given else 'declared and not kept'}")
    for name, shape in wanted.items():
        if given[name].shape != shape:
            raise InputError(f"{where}: {name} of shape {given[name].shape}; expected {shape}")


AUDIT = Stage(
    name="audit",
    makes="audit",
    rounds=lambda node: [0],
    start=_start,
    advance=_advance,
    artefact=lambda state: {
        "tokens": state["scores"].tokens,
        "samples": state["scores"].samples,
        **(state["scores"].kept or {}),
    },
    shapes=_shapes,
    check=_check,
    finite=False,  # where a sample has no token there is no score
    flops=lambda node: node.audit.flops(node),
)
