"""Continuations of many prompts by few rows: a row that has finished takes up the next prompt, so the batch stays full.

Prompts are read up to `rows` at a time, in one pass and without their padding. Their keys and values wait until rows
are free. A row's cache has first the slots of its prompt, then a ring for the tokens it has drawn: all rows write the
same slot of it at a step, whichever token each of them is at, and each reads only what it wrote itself since it took up
its prompt.
"""

import dataclasses
import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from subl_jax.channels import automaton
from subl_jax.errors import InputError
from subl_jax.models import transformer
from subl_jax.models.decoding.sampling import Sampling, draw

Params = Any

# Steps between looks for free rows: copying the prompts' keys and values in costs about as much as a step.
_STEPS_BETWEEN = 4


class Prefix(NamedTuple):
    """What all prompts have before them: their cache without the axis of a batch, and its length ()."""

    cache: transformer.Cache
    length: jax.Array


class Allowed(NamedTuple):
    """An `automaton.Automaton` in a program. The `tokens` (allowed,) are the only ones whose logits are computed."""

    tokens: jax.Array
    next: jax.Array
    shortest: jax.Array
    start: jax.Array


class _Rows(NamedTuple):
    """cache: of the rows; sample: (rows,) which prompt each is at, or their number for none; count: tokens drawn."""

    cache: transformer.Cache
    sample: jax.Array
    length: jax.Array  # of the prompt
    count: jax.Array
    last: jax.Array  # the token drawn last
    state: jax.Array  # of the automaton
    active: jax.Array
    step: jax.Array  # ()
    written: jax.Array  # (samples, new_tokens)


class _Waiting(NamedTuple):
    """Prompts that have been read: their cache, the token drawn after each, and how many have been taken up."""

    cache: transformer.Cache
    length: jax.Array
    first: jax.Array
    state: jax.Array
    sample: jax.Array
    there: jax.Array  # (rows,) bool, the first ones
    taken: jax.Array  # ()


def read_prefix(
    config: transformer.Config, params: Params, tokens: jax.Array, length: jax.Array, lora: Params | None = None
) -> Prefix:
    """tokens: (longest,) int32, of which the first `length` count."""
    cache = transformer.empty_cache(config, 1, len(tokens))
    nothing = jnp.zeros((1, 1), jnp.int32)
    _, cache = transformer.apply(
        config, params, tokens[None], cache=cache, logits_at=nothing, logits_of=nothing[0], lora=lora
    )
    return Prefix(jax.tree.map(lambda x: x[:, 0], cache), length)


def generate(
    config: transformer.Config,
    params: Params,
    prompts: jax.Array,
    lengths: jax.Array,
    keys: jax.Array,
    new_tokens: int,
    sampling: Sampling,
    *,
    rows: int,
    stops: jax.Array,
    pad: int,
    prefix: Prefix,
    allowed: Allowed | None = None,
    cut: bool = False,
    lora: Params | None = None,
    room: float = 1.0,
    apart: bool = False,
) -> jax.Array:
    """Continuations (n, new_tokens) int32, each up to and with its stop token, then `pad`.

    A continuation depends on its own prompt and key alone: token t is drawn with fold_in(key, t).

    Args:
      config: of scanned layers.
      prompts: (n, longest) int32, padded on the right with anything.
      lengths: (n,) int32, each at least 1.
      keys: (n,) typed keys.
      new_tokens: at most so many each, static.
      sampling: as in `sampling.draw`; `cut` as there.
      rows: how many continuations are under way at a time, static.
      stops: (stops,) int32, the tokens that end a continuation.
      allowed: what may be drawn; every continuation is then whole within `new_tokens`.
      room: the share of rows * longest that reading computes, as the rest is padding, static. Where prompts are longer,
        fewer of them are read at a time.
      apart: tokens are drawn layer by layer, not in a loop over stacked layers, static. Nothing is then copied out of
        the stacks at every step, but there is a second copy of the weights, and more to compile.

    Raises:
      InputError: no rows or no tokens are asked for.
    """
    if rows < 1 or new_tokens < 1:
        raise InputError(f"generate: rows = {rows}, new_tokens = {new_tokens}: each must be at least 1")
    n, longest = prompts.shape
    prompts, lengths, stops = jnp.asarray(prompts), jnp.asarray(lengths), jnp.asarray(stops)
    rows = min(rows, n)
    most = transformer.room(room, rows, longest)
    slots = longest + new_tokens

    only = None if allowed is None else allowed.tokens
    model = (params, prefix.cache, lora)
    drawing_config = dataclasses.replace(config, scan_layers=not apart)

    def apply(config: transformer.Config, model: Any, *args: Any, **options: Any) -> Any:
        params, shared, lora = model
        own = {"prefix": shared, "prefix_length": prefix.length, "lora": lora, "logits_of": only}
        return transformer.apply(config, params, *args, **own, **options)

    read_by = functools.partial(apply, config, model)
    if apart:
        model = tuple(transformer.layer_by_layer(config, part) for part in model)
    drawn_by = functools.partial(apply, drawing_config, model)

    def next_token(
        sample: jax.Array, count: jax.Array, state: jax.Array, logits: jax.Array
    ) -> tuple[jax.Array, jax.Array]:
        own_keys = jax.vmap(jax.random.fold_in)(keys[jnp.minimum(sample, n - 1)], count)
        if allowed is None:
            return draw(own_keys, logits, sampling, cut), state
        following = allowed.next[state]
        fits = automaton.allowed(following, allowed.shortest, (new_tokens - count)[:, None])
        place = draw(own_keys, jnp.where(fits, logits, -jnp.inf), sampling, cut)
        return allowed.tokens[place], jnp.take_along_axis(following, place[:, None], axis=1)[:, 0].astype(jnp.int32)

    def read(first_of: jax.Array) -> _Waiting:
        """The prompts of the samples from `first_of` on, as many as there are and as there is room for."""
        sample = first_of + jnp.arange(rows)
        at = jnp.minimum(sample, n - 1)
        there = (sample < n) & (jnp.cumsum(lengths[at]) <= most)
        tokens, length = prompts[at], lengths[at]
        own = (jnp.arange(longest) < length[:, None]) & there[:, None]
        packed = transformer.packing(own, most) if most < rows * longest else None
        positions = jnp.broadcast_to(prefix.length + jnp.arange(longest), tokens.shape)
        logits, cache = read_by(
            tokens,
            positions,
            cache=transformer.empty_cache(config, rows, longest),
            logits_at=(length - 1)[:, None],
            packed=packed,
        )
        start = jnp.full((rows,), 0 if allowed is None else allowed.start, jnp.int32)
        first, state = next_token(sample, jnp.zeros(rows, jnp.int32), start, logits[:, 0])
        cache = transformer.layer_by_layer(config, cache) if apart else cache
        return _Waiting(cache, length, first, state, sample, there, jnp.int32(0))

    def take_up(carry: tuple[_Rows, _Waiting]) -> tuple[_Rows, _Waiting]:
        """Gives the rows that are free the prompts that come next."""
        now, waiting = carry
        place = waiting.taken + jnp.cumsum(~now.active) - 1
        taking = ~now.active & (place < waiting.there.sum())
        place = jnp.minimum(place, rows - 1)

        def new(old: jax.Array, of_waiting: jax.Array) -> jax.Array:
            return jnp.where(taking, of_waiting[place], old)

        def copied(path: Any, old: jax.Array, of_waiting: jax.Array) -> jax.Array:
            axis = transformer.SLOTS_AXIS[path[-1].key]
            own = jax.lax.slice_in_dim(old, 0, longest, axis=axis)
            chosen = jnp.where(taking[:, None, None, None], jnp.take(of_waiting, place, axis=-4), own)
            return jax.lax.dynamic_update_slice_in_dim(old, chosen, 0, axis)

        first = new(now.last, waiting.first)
        sample = new(now.sample, waiting.sample)
        now = now._replace(
            cache=jax.tree_util.tree_map_with_path(copied, now.cache, waiting.cache),
            sample=sample,
            length=new(now.length, waiting.length),
            count=jnp.where(taking, 1, now.count),
            last=first,
            state=new(now.state, waiting.state),
            active=now.active | (taking & ~jnp.isin(first, stops) & (new_tokens > 1)),
            written=now.written.at[jnp.where(taking, sample, n), 0].set(first, mode="drop"),
        )
        return now, waiting._replace(taken=waiting.taken + taking.sum())

    def step(_: jax.Array, now: _Rows) -> _Rows:
        turn = now.step % new_tokens
        age = (now.step - jnp.arange(new_tokens)) % new_tokens
        own = jnp.concatenate([jnp.arange(longest) < now.length[:, None], age < now.count[:, None]], axis=1)
        logits, cache = drawn_by(
            now.last[:, None],
            (prefix.length + now.length + now.count - 1)[:, None],
            cache=now.cache,
            cache_slot=longest + turn,
            attend=own[:, None],
        )
        token, state = next_token(now.sample, now.count, now.state, logits[:, 0])
        count = now.count + now.active
        return now._replace(
            cache=cache,
            count=count,
            last=token,
            state=state,
            active=now.active & ~jnp.isin(token, stops) & (count < new_tokens),
            step=now.step + 1,
            written=now.written.at[jnp.where(now.active, now.sample, n), now.count].set(token, mode="drop"),
        )

    def steps(now: _Rows) -> _Rows:
        return jax.lax.fori_loop(0, _STEPS_BETWEEN, step, now)

    def chunk(carry: tuple[_Rows, jax.Array]) -> tuple[_Rows, jax.Array]:
        """Reads prompts, and draws until there was a free row for each; after the last ones, until all have ended."""
        now, first_of = carry
        waiting = read(first_of)
        next_of = first_of + waiting.there.sum()

        def waits(carry: tuple[_Rows, _Waiting]) -> jax.Array:
            return carry[1].taken < carry[1].there.sum()

        def goes_on(carry: tuple[_Rows, _Waiting]) -> jax.Array:
            return waits(carry) | ((next_of >= n) & carry[0].active.any())

        def turn(carry: tuple[_Rows, _Waiting]) -> tuple[_Rows, _Waiting]:
            now, waiting = jax.lax.while_loop(lambda carry: waits(carry) & ~carry[0].active.all(), take_up, carry)
            return steps(now), waiting

        now, _ = jax.lax.while_loop(goes_on, turn, (now, waiting))
        return now, next_of

    none = jnp.zeros(rows, jnp.int32)
    now = _Rows(
        cache=transformer.empty_cache(drawing_config, rows, slots),
        sample=none + n,
        length=none + 1,
        count=none + 1,
        last=none,
        state=none,
        active=none > 0,
        step=jnp.int32(0),
        written=jnp.full((n, new_tokens), pad, jnp.int32),
    )
    return jax.lax.while_loop(lambda carry: carry[1] < n, chunk, (now, jnp.int32(0)))[0].written
