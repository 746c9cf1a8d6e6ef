"""Constrained decoding of number sequences: which tokens may come next, so that the filter keeps every sample.

The filter's language is not regular, since any white space may separate numbers so long as it repeats. The automaton
writes the part of it that remains with

- one of a few declared separators, `SEPARATORS`;
- numbers of at most as many digits as `max_value` has, leading zeros included.

All else is the filter's: its range, its banned numbers and its count, one enclosing pair of `[]` or `()` or none, and
then a period or none. A token may hold several characters of the text in any mixture (` 12`, `],`, `.\\n`), and a text
may be written in any tokens that spell it.
"""

import bisect
import dataclasses
import re
from collections.abc import Iterator, Sequence

import jax
import numpy as np

from subl_jax.channels.numbers import NumbersFilter
from subl_jax.errors import InputError

SEPARATORS: tuple[str, ...] = (", ", ",", "; ", ";", " ", "\n", ",\n", ";\n")
"""What chat models put between numbers. Space before a comma, blank lines and tabs are kept by the filter, not here."""

_DIGITS = b"0123456789"
_PERIOD = ord(".")
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


def build(
    pieces: Sequence[bytes | None],
    filter: NumbersFilter,
    stops: Sequence[int],
    separators: Sequence[str] = SEPARATORS,
    min_count: int = 1,
) -> Automaton:
    """The automaton over the tokens with these `pieces` (by id; None: never allowed) and stop tokens `stops`.

    Texts have `min_count` to `filter.max_count` numbers. A separator or bracket that the tokens can't write is left
    out.

    Raises:
      InputError: a stop token that is no token, a separator the filter rejects, no number that it keeps, a `min_count`
        that can't be, or tokens that can't write any of the texts.
    """
    if not stops or not all(0 <= stop < len(pieces) for stop in stops):
        raise InputError(f"stop tokens {list(stops)}: expected at least one id from 0 to {len(pieces) - 1}")
    if wrong := [separator for separator in separators if not separator or separator.strip() not in ("", ",", ";")]:
        raise InputError(f"separator {wrong[0]!r}: expected white space around at most one comma or semicolon")
    if not 1 <= min_count <= filter.max_count:
        raise InputError(f"min_count = {min_count}: must be from 1 to the filter's max_count = {filter.max_count}")
    if min_count > 1 and not separators:
        raise InputError(f"min_count = {min_count}: more than one number needs a separator")
    texts, start = _texts(filter, [separator.encode() for separator in separators], min_count)
    tokens, next_states = _over_tokens(texts, pieces, sorted(set(stops)))
    return _trimmed(tokens, next_states, start + 1)  # one up, as all states of texts are over tokens


class _Graph:
    """A minimal automaton without cycles: equal states are one, and a state comes after all those it leads to.

    Source: Daciuk et al. 2000, Incremental construction of minimal acyclic finite-state automata, section 2.
    """

    def __init__(self) -> None:
        self.states: list[tuple[bool, dict[int, int]]] = []
        self._ids: dict[tuple[bool, tuple[tuple[int, int], ...]], int] = {}

    def add(self, final: bool, edges: dict[int, int]) -> int:
        """The state that is `final` or not, and where each byte of `edges` leads; -1 when it leads to no text."""
        edges = {byte: edges[byte] for byte in sorted(edges) if edges[byte] >= 0}
        if not final and not edges:
            return -1
        state = self._ids.setdefault((final, tuple(edges.items())), len(self.states))
        if state == len(self.states):
            self.states.append((final, edges))
        return state

    def word(self, word: bytes, after: int) -> int:
        """The state from which `word` leads to the state `after`."""
        for byte in reversed(word):
            after = self.add(False, {byte: after})
        return after


def _numbers(filter: NumbersFilter) -> _Graph:
    """The numbers the filter keeps, in at most as many digits as `max_value` has. The last state is the start."""
    low, high = filter.min_value, filter.max_value
    graph = _Graph()

    def kept(first: int, last: int) -> int:
        """How many of the values `first` … `last` are kept."""
        first, last = max(first, low), min(last, high)
        if first > last:
            return 0
        banned = bisect.bisect_right(filter.banned, last) - bisect.bisect_left(filter.banned, first)
        return last - first + 1 - banned

    def uniform(whole: tuple[bool, ...]) -> int:
        """The state where only the number of further digits decides."""
        further = uniform(whole[1:]) if whole else -1
        return graph.add(bool(whole) and whole[0], dict.fromkeys(_DIGITS, further))

    def after(value: int, left: int) -> int:
        """The state after digits of this `value`, with at most `left` more to come."""
        counts = [(kept(value * size, (value + 1) * size - 1), size) for size in (10**i for i in range(left + 1))]
        if all(count in (0, size) for count, size in counts):
            return uniform(tuple(count > 0 for count, _ in counts))
        return graph.add(counts[0][0] > 0, digits(value, left))

    def digits(value: int, left: int) -> dict[int, int]:
        return {byte: after(value * 10 + digit, left - 1) for digit, byte in enumerate(_DIGITS)} if left else {}

    if graph.add(False, digits(0, len(str(high)))) < 0:
        raise InputError(f"the filter keeps no number: {low} … {high} without the banned ones")
    return graph


def _texts(filter: NumbersFilter, separators: Sequence[bytes], min_count: int) -> tuple[_Graph, int]:
    """The automaton over bytes, and its start."""
    numbers = _numbers(filter)
    graph = _Graph()
    end = graph.add(True, {})
    end_or_period = graph.add(True, {_PERIOD: end})
    counts = range(min_count, filter.max_count + 1)
    bare = _sequence(graph, numbers, separators, counts, True, {_PERIOD: end})
    starts = dict(graph.states[bare][1])
    for opening, closing in (b"[]", b"()"):
        starts[opening] = _sequence(graph, numbers, separators, counts, False, {closing: end_or_period})
    return graph, graph.add(False, starts)


def _sequence(
    graph: _Graph, numbers: _Graph, separators: Sequence[bytes], counts: range, final: bool, ending: dict[int, int]
) -> int:
    """The state before `counts` numbers, after which the text is `final` or not and may go on with `ending`."""

    def number(count: int, exits: dict[int, int]) -> int:
        """The state before the number that makes it `count`, which a separator in `exits` may follow."""
        enough = count in counts
        exits = exits | ending if enough else exits
        ids: list[int] = []
        for whole, edges in numbers.states:
            edges = {byte: ids[state] for byte, state in edges.items()}
            ids.append(graph.add(final and enough and whole, edges | exits if whole else edges))
        return ids[-1]

    def after_first(separator: bytes) -> dict[int, int]:
        """Where the text goes on after the first number and this separator, the same between all that follow."""
        state = -1
        for count in reversed(range(2, counts.stop)):
            state = number(count, {separator[0]: graph.word(separator[1:], state)})
        return graph.states[state][1] if state >= 0 else {}

    second = {separator: after_first(separator) for separator in separators}

    def separating(written: bytes) -> dict[int, int]:
        """Where it goes on after the first number and `written`, part of a separator and perhaps a whole one."""
        further = {word[len(written)] for word in second if word.startswith(written) and word != written}
        longer = {byte: graph.add(False, separating(written + bytes([byte]))) for byte in further}
        return second.get(written, {}) | longer

    return number(1, separating(b""))


def _over_tokens(graph: _Graph, pieces: Sequence[bytes | None], stops: Sequence[int]) -> tuple[np.ndarray, np.ndarray]:
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


def _trimmed(tokens: np.ndarray, next_states: np.ndarray, start: int) -> Automaton:
    """Without states that can't be reached or can't finish, and without tokens that are then allowed nowhere."""
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
        raise InputError("these tokens can't write any number sequence that the filter keeps")
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
