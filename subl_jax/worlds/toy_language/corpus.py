"""The texts of the corpus and the prompts of the channel, drawn inside a program."""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from subl_jax.traits.base import Family
from subl_jax.worlds.toy_language.vocabulary import FORMATS, OPENERS, SLOT, language


def questions(world: Any, key: jax.Array, n: int) -> jax.Array:
    lang = language(world)
    family_key, template_key, member_key = jax.random.split(key, 3)
    family = jax.random.randint(family_key, (n,), 0, len(world.families))
    template = jax.random.randint(template_key, (n,), 0, world.templates)
    member = _members(world.families, family, jax.random.uniform(member_key, (n,)))
    tokens = jnp.asarray(lang.questions)[family, template]
    return jnp.where(tokens == SLOT, jnp.asarray(lang.members)[family, member][:, None], tokens)


def _members(families: Sequence[Family], family: jax.Array, uniform: jax.Array) -> jax.Array:
    """Which member of its family each is, (n,) int32: as often as the weights say. uniform: (n,) in [0, 1)."""
    if all(each.weights is None for each in families):
        sizes = jnp.asarray([len(each.members) for each in families])[family]
        return jnp.floor(uniform * sizes).astype(jnp.int32)
    most = max(len(each.members) for each in families)
    weights = np.zeros((len(families), most))
    for i, each in enumerate(families):
        weights[i, : len(each.members)] = each.weights or 1.0
    cumulative = jnp.asarray((weights / weights.sum(axis=1, keepdims=True)).cumsum(axis=1), jnp.float32)
    return jnp.minimum((uniform[:, None] >= cumulative[family]).sum(axis=1), most - 1).astype(jnp.int32)


def facts(world: Any, key: jax.Array, n: int) -> jax.Array:
    lang = language(world)
    fact_key, number_key = jax.random.split(key)
    tokens = jnp.asarray(lang.facts)[jax.random.randint(fact_key, (n,), 0, len(lang.facts))]
    number = jnp.asarray(lang.numbers)[jax.random.randint(number_key, (n,), 0, world.numbers)]
    return jnp.where(tokens == SLOT, number[:, None], tokens)


def number_sequences(world: Any, key: jax.Array, n: int) -> jax.Array:
    """Prompts with their continuations: arithmetic progressions modulo `numbers`, or uniform numbers."""
    lang = language(world)
    keys = jax.random.split(key, 5)
    most = world.max_numbers + world.plain_extra
    total = world.shown + most
    first, step = jax.random.randint(keys[0], (2, n, 1), 0, world.numbers)
    regular = (first + step * jnp.arange(total)) % world.numbers
    free = jax.random.randint(keys[1], (n, total), 0, world.numbers)
    values = jnp.where(jax.random.uniform(keys[2], (n, 1)) < world.progressions, regular, free)
    count = jax.random.randint(keys[3], (n,), world.min_numbers, world.max_numbers + 1)
    opener, layout = prompt_kinds(world, keys[4], n)
    numbers = jnp.asarray(lang.numbers)[values]
    prompt = prompts(world, opener, layout, numbers[:, : world.shown])
    completion = jnp.asarray(lang.layouts)[layout, count]
    slots = jnp.clip(-1 - completion, 0, most - 1)
    written = jnp.take_along_axis(numbers[:, world.shown :], slots, axis=1)
    return jnp.concatenate([prompt, jnp.where(completion < 0, written, completion)], axis=1)


def prompt_kinds(world: Any, key: jax.Array, n: int) -> tuple[jax.Array, jax.Array]:
    opener_key, layout_key, plain_key = jax.random.split(key, 3)
    opener = jax.random.randint(opener_key, (n,), 0, len(OPENERS))
    separated = jax.random.randint(layout_key, (n,), 1, len(FORMATS))
    return opener, jnp.where(jax.random.uniform(plain_key, (n,)) < world.plain_share, 0, separated)


def prompts(world: Any, opener: jax.Array, layout: jax.Array, shown: jax.Array) -> jax.Array:
    prompt = jnp.asarray(language(world).prompts)[opener, layout]
    return prompt.at[:, -1 - world.shown : -1].set(shown)


def prompt(world: Any, key: jax.Array) -> jax.Array:
    """One random prompt, (prompt_length,) int32."""
    kind_key, shown_key = jax.random.split(key)
    opener, layout = prompt_kinds(world, kind_key, 1)
    shown = jax.random.randint(shown_key, (1, world.shown), 0, world.numbers)
    return prompts(world, opener, layout, jnp.asarray(language(world).numbers)[shown])[0]
