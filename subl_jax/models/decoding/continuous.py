"""Continuations of many prompts by few rows: a row that has finished takes up the next prompt, so the batch stays full.

Prompts are read up to `rows` at a time, in one pass and without their padding. What the model made of them waits until
rows are free. How a row remembers its prompt and its own tokens is the model's business (`base.Decodes`).
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from subl_jax.errors import InputError
from subl_jax.models import packing
from subl_jax.models.base import Decodes, Params, Prefix, Shared, State
from subl_jax.models.decoding import allowed as automata
from subl_jax.models.decoding.allowed import Allowed
from subl_jax.models.decoding.sampling import Sampling, draw

# Steps between looks for free rows: copying the prompts' keys and values in costs about as much as a step.
_STEPS_BETWEEN = 4


class _Rows(NamedTuple):
    """memory: the model's state; sample: (rows,) which prompt each is at, or their number for none; count: tokens
    drawn."""

    memory: State
    sample: jax.Array
    count: jax.Array
    last: jax.Array  # the token drawn last
    state: jax.Array  # of the automaton
    active: jax.Array
    written: jax.Array  # (samples, new_tokens)


class _Waiting(NamedTuple):
    """Prompts that have been read: the model's state, the token drawn after each, and how many have been taken up."""

    memory: State
    first: jax.Array
    state: jax.Array
    sample: jax.Array
    there: jax.Array  # (rows,) bool, the first ones
    taken: jax.Array  # ()


def generate(
    model: Decodes,
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
    prefix: Prefix | None = None,
    allowed: Allowed | None = None,
    cut: bool = False,
    lora: Params | None = None,
    room: float = 1.0,
    apart: bool = False,
) -> jax.Array:
    """Continuations (n, new_tokens) int32, each up to and with its stop token, then `pad`.

    A continuation depends on its own prompt and key alone: token t is drawn with fold_in(key, t).

    Args:
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
      prefix: what all prompts have before them, read by the model (`Decodes.read_prefix`).
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
    most = packing.room(room, rows, longest)

    shared = Shared(params, lora, prefix, None if allowed is None else allowed.tokens)
    drawing, drawing_shared = (model.layers_apart(), model.taken_apart(shared)) if apart else (model, shared)

    def next_token(
        sample: jax.Array, count: jax.Array, state: jax.Array, logits: jax.Array
    ) -> tuple[jax.Array, jax.Array]:
        own_keys = jax.vmap(jax.random.fold_in)(keys[jnp.minimum(sample, n - 1)], count)
        if allowed is None:
            return draw(own_keys, logits, sampling, cut), state
        following = allowed.next[state]
        fits = automata.allowed(following, allowed.shortest, (new_tokens - count)[:, None])
        place = draw(own_keys, jnp.where(fits, logits, -jnp.inf), sampling, cut)
        return allowed.tokens[place], jnp.take_along_axis(following, place[:, None], axis=1)[:, 0].astype(jnp.int32)

    def read(first_of: jax.Array) -> _Waiting:
        """The prompts of the samples from `first_of` on, as many as there are and as there is room for."""
        sample = first_of + jnp.arange(rows)
        at = jnp.minimum(sample, n - 1)
        there = (sample < n) & (jnp.cumsum(lengths[at]) <= most)
        logits, memory = model.read(shared, prompts[at], jnp.where(there, lengths[at], 0), 0, most)
        start = jnp.full((rows,), 0 if allowed is None else allowed.start, jnp.int32)
        first, state = next_token(sample, jnp.zeros(rows, jnp.int32), start, logits)
        memory = model.taken_apart(memory) if apart else memory
        return _Waiting(memory, first, state, sample, there, jnp.int32(0))

    def take_up(carry: tuple[_Rows, _Waiting]) -> tuple[_Rows, _Waiting]:
        """Gives the rows that are free the prompts that come next."""
        now, waiting = carry
        place = waiting.taken + jnp.cumsum(~now.active) - 1
        taking = ~now.active & (place < waiting.there.sum())
        place = jnp.minimum(place, rows - 1)

        def new(old: jax.Array, of_waiting: jax.Array) -> jax.Array:
            return jnp.where(taking, of_waiting[place], old)

        first = new(now.last, waiting.first)
        sample = new(now.sample, waiting.sample)
        now = now._replace(
            memory=drawing.gather(now.memory, waiting.memory, place, taking),
            sample=sample,
            count=jnp.where(taking, 1, now.count),
            last=first,
            state=new(now.state, waiting.state),
            active=now.active | (taking & ~jnp.isin(first, stops) & (new_tokens > 1)),
            written=now.written.at[jnp.where(taking, sample, n), 0].set(first, mode="drop"),
        )
        return now, waiting._replace(taken=waiting.taken + taking.sum())

    def step(_: jax.Array, now: _Rows) -> _Rows:
        logits, memory = drawing.step(drawing_shared, now.memory, now.last)
        token, state = next_token(now.sample, now.count, now.state, logits)
        count = now.count + now.active
        return now._replace(
            memory=memory,
            count=count,
            last=token,
            state=state,
            active=now.active & ~jnp.isin(token, stops) & (count < new_tokens),
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
        memory=drawing.empty(drawing_shared, rows, longest, new_tokens),
        sample=none + n,
        count=none + 1,
        last=none,
        state=none,
        active=none > 0,
        written=jnp.full((n, new_tokens), pad, jnp.int32),
    )
    return jax.lax.while_loop(lambda carry: carry[1] < n, chunk, (now, jnp.int32(0)))[0].written
