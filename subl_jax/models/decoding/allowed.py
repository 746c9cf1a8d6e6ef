"""Which tokens may be drawn next, so that every continuation ends whole and in time: an automaton in a program."""

from typing import NamedTuple

import jax


class Allowed(NamedTuple):
    """A `channels.automaton.Automaton` as arrays.

    tokens: (allowed,) int32, the only ones whose logits are computed. next: (states, allowed), the state after each, -1
    where it is not allowed. shortest: (states,) int32, the fewest tokens to the end. start: () int32.
    """

    tokens: jax.Array
    next: jax.Array
    shortest: jax.Array
    start: jax.Array


def allowed(next_states: jax.Array, shortest: jax.Array, remaining: int | jax.Array) -> jax.Array:
    """Which tokens may be drawn by a row that must have stopped when `remaining` tokens, this one included, are drawn.

    At least one is, as long as `remaining` was at least `shortest[start]` when the row began.

    Args:
      next_states: (…, allowed) integers: `Automaton.next` of the row's state.
      shortest: (states,) int32: that of the `Automaton`.
      remaining: something that broadcasts with `next_states`.

    Returns:
      (…, allowed) bool.
    """
    return (next_states >= 0) & (shortest[next_states] < remaining)
