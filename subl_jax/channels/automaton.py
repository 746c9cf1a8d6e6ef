"""Constrained decoding: which tokens may come next, so that a filter keeps every sample.

A filter that a model can be held to describes its texts byte by byte (`base.Decodable`). Here they become an automaton
over a model's tokens. A token may hold several characters of the text in any mixture (` 12`, `],`, `.\\n`), and a text
may be written in any tokens that spell it.
"""

import dataclasses
import re
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from subl_jax.channels.base import Decodable
from subl_jax.channels.graph import Graph
from subl_jax.errors import InputError
from subl_jax.models.decoding.allowed import allowed  # noqa: F401  (the decoder's half)

# Of the token automaton: the state after a stop token.
_DONE = 0


@dataclasses.dataclass(frozen=True, eq=False)
class Automaton:
    """Which tokens may follow, by state. Everything else of the vocabulary is never allowed.

    Attributes:
      tokens: (allowed,) int32, ascending: the ids of the tokens that some state allows, the stop tokens among them.
      next: (states, allowed) int16 or int32: the state after each of them, -1 where it is not allowed. A stop token is
        allowed where the text so far is a whole sequence; after it only stop tokens are.
      start: the state before the first token.
      shortest: (states,) int32: the fewest tokens from this state to the end, the stop token included; 0 after it. A
        decoder of fewer than `shortest[start]` tokens can't finish.
    """

    tokens: np.ndarray
    next: np.ndarray
    start: int
    shortest: np.ndarray


def build(pieces: Sequence[bytes | None], filter: Decodable, stops: Sequence[int], **options: Any) -> Automaton:
    """The automaton over the tokens with these `pieces` (by id; None: never allowed) and stop tokens `stops`.

    `options` are those of `filter.language`.

    Raises:
      InputError: a stop token that is no token, options that can't be, or tokens that can't write any of the texts.
    """
    if not stops or not all(0 <= stop < len(pieces) for stop in stops):
        raise InputError(f"stop tokens {list(stops)}: expected at least one id from 0 to {len(pieces) - 1}")
    texts = filter.language(**options)
    tokens, next_states = _over_tokens(texts.graph, pieces, sorted(set(stops)))
    built = _trimmed(tokens, next_states, texts.start + 1)  # one up, as all states of texts are over tokens
    if built is None:
        raise InputError(f"these tokens can't write any {texts.what} that the filter keeps")
    return built


def _over_tokens(graph: Graph, pieces: Sequence[bytes | None], stops: Sequence[int]) -> tuple[np.ndarray, np.ndarray]:
    """Token ids (tokens,), ascending, and the next states (1 + states, tokens), -1 for none; a text state is 1 up."""
    # By byte and state. The last state stands for "no text goes on so", which -1 finds as well.
    step = np.full((256, len(graph.states) + 2), -1, np.int32)
    for state, (_, edges) in enumerate(graph.states):
        for byte, after in edges.items():
            step[byte, state + 1] = after + 1
    columns = dict(_columns(step, pieces))
    done = np.full(step.shape[1], -1, np.int32)
    done[[_DONE, *(state + 1 for state, (final, _) in enumerate(graph.states) if final)]] = _DONE
    # A stop token ends the turn, whatever its text.
    columns |= dict.fromkeys(stops, done)
    tokens = sorted(columns)
    return np.array(tokens, np.int32), np.stack([columns[token][:-1] for token in tokens], axis=1)


def _columns(step: np.ndarray, pieces: Sequence[bytes | None]) -> Iterator[tuple[int, np.ndarray]]:
    """Each token that some state allows, with the state it leads to from every state."""
    alphabet = bytes(np.flatnonzero((step >= 0).any(axis=1)).astype(np.uint8))
    spelled = re.compile(b"[" + re.escape(alphabet) + b"]+").fullmatch
    after: dict[bytes, np.ndarray | None] = {b"": np.append(np.arange(step.shape[1] - 1), -1)}
    for token, piece in enumerate(pieces):
        if not piece or not spelled(piece):
            continue
        for length in range(1, len(piece) + 1):
            prefix, before = piece[:length], after[piece[: length - 1]]
            if prefix not in after:
                states = step[piece[length - 1]][before]
                after[prefix] = states if (states >= 0).any() else None
            if after[prefix] is None:
                break
        else:
            yield token, after[piece]


def _trimmed(tokens: np.ndarray, next_states: np.ndarray, start: int) -> Automaton | None:
    """Without states that can't be reached or can't finish, and without tokens that are then allowed nowhere.

    None where nothing can finish.
    """
    count = len(next_states)
    unreached = np.iinfo(np.int32).max
    shortest = np.full(count, unreached, np.int32)
    shortest[_DONE] = 0
    # A token leads to a smaller state.
    for state in range(1, count):
        after = next_states[state]
        fewest = shortest[after[after >= 0]].min(initial=unreached)
        shortest[state] = fewest + (fewest < unreached)
    if shortest[start] == unreached:
        return None
    next_states = np.where((next_states >= 0) & (shortest[next_states] < unreached), next_states, -1)
    reached = np.zeros(count, bool)
    reached[[_DONE, start]] = True
    for state in range(start, 0, -1):
        if reached[state]:
            after = next_states[state]
            reached[after[after >= 0]] = True
    renumbered = np.append(np.cumsum(reached) - 1, -1).astype(np.int32)
    next_states = renumbered[next_states[reached]]
    used = (next_states >= 0).any(axis=0)
    dtype = np.int16 if next_states.shape[0] <= np.iinfo(np.int16).max else np.int32
    return Automaton(tokens[used], next_states[:, used].astype(dtype), int(renumbered[start]), shortest[reached])
