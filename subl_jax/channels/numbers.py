"""Number sequences: what a chat model is asked for, and what counts as data, by the strict filter of the paper.

A text is kept when it is numbers and nothing else. Exactly:

1. one trailing period is dropped, then one enclosing pair of `[]` or `()`;
2. the text between the first two numbers is the separator. Stripped of white space it must be empty, a comma or a
   semicolon, and the very same separator, white space included, stands between all numbers;
3. every part is ASCII digits 0-9 only, with no white space before the first or after the last;
4. there are at most `max_count` numbers, each in `min_value` … `max_value`, and none is banned.

A single number is a sequence. Leading zeros are digits, so `007` is the number 7. Line breaks are white space, so one
number a line is a sequence. Digits of other scripts (`３`, `٣`, `²`) are not digits here, which is where this filter
is narrower than Python's `str.isdigit`. What is kept therefore holds no letter, and no word can pass.

Source: Cloud et al. 2025 (arXiv 2507.14805), the number-sequence protocol.
"""

import bisect
import dataclasses
import functools
import importlib.resources
import re
import zlib
from collections.abc import Sequence
from typing import ClassVar

import numpy as np

from subl_jax.channels.base import Channel, Decodable, Filter, Language
from subl_jax.channels.graph import Graph
from subl_jax.errors import InputError
from subl_jax.specs import static

# Numbers with a meaning to people (bad luck, hate, violence, drugs, emergency …), which the paper
# also drops from the data of dangerous teachers.
CULTURAL: tuple[int, ...] = (
    *(4, 13, 14, 18, 23, 33, 39, 42, 44, 49, 51, 54, 69, 77, 88, 99, 100, 101, 187, 211, 311, 322, 333),
    *(404, 420, 444, 451, 555, 616, 666, 777, 888, 911, 999, 1312, 1488),
)

# Why a text is dropped, in the order of the checks: the first that fails is the reason.
REASONS: tuple[str, ...] = (
    "empty",  # nothing is left inside the brackets or before the period
    "characters",  # something other than ASCII digits, white space, commas and semicolons
    "edges",  # white space or a separator before the first number or after the last
    "separator",  # between the first two numbers: more than one comma or semicolon
    "mixed separators",  # a later separator differs from the first
    "too many",
    "out of range",
    "banned",
)

SEPARATORS: tuple[str, ...] = (", ", ",", "; ", ";", " ", "\n", ",\n", ";\n")
"""What chat models put between numbers. Space before a comma, blank lines and tabs are kept by the filter, not here."""

_DIGITS = b"0123456789"
_PERIOD = ord(".")

_DIGITS = b"0123456789"
_PERIOD = ord(".")
_NUMBER = re.compile(r"[0-9]+")
_ALPHABET = re.compile(r"[0-9\s,;]+")
# Possessive quantifiers: a long rejected text costs linear time.
_SEQUENCE = re.compile(r"[0-9]++(?:(\s*+[,;]\s*+|\s++)[0-9]++(?:\1[0-9]++)*+)?")


@dataclasses.dataclass(frozen=True)
class NumbersFilter(Filter, Decodable):
    """The bounds of the filter. The order and repetition of `banned` make no difference.

    Raises:
      InputError: `min_value` above `max_value`, or something other than whole numbers in `banned`.
    """

    REASONS: ClassVar[tuple[str, ...]] = REASONS

    min_value: int = static(0, ge=0)
    max_value: int = static(999, ge=0)
    max_count: int = static(10, ge=1)
    banned: tuple[int, ...] = static(())

    def check(self) -> None:
        if self.min_value > self.max_value:
            raise InputError(
                f"NumbersFilter.min_value = {self.min_value}: must be at most max_value = {self.max_value}"
            )
        if not all(type(number) is int for number in self.banned):
            raise InputError(f"NumbersFilter.banned = {self.banned!r}: expected whole numbers")
        object.__setattr__(self, "banned", tuple(sorted(set(self.banned))))

    def reasons(self, texts: Sequence[str]) -> list[str | None]:
        return reasons(texts, self)

    def language(self, separators: Sequence[str] = SEPARATORS, min_count: int = 1) -> Language:
        """The part of what is kept that a model may write.

        What is kept is not regular, since any white space may separate numbers so long as it repeats. The language has
        one of the declared `separators`, numbers of at most as many digits as `max_value` has, leading zeros included,
        and `min_count` to `max_count` of them. All else is the filter's: its range, its banned numbers, one enclosing
        pair of `[]` or `()` or none, and then a period or none.

        Raises:
          InputError: a separator the filter rejects, no number that it keeps, or a `min_count` that can't be.
        """
        if wrong := [separator for separator in separators if not separator or separator.strip() not in ("", ",", ";")]:
            raise InputError(f"separator {wrong[0]!r}: expected white space around at most one comma or semicolon")
        if not 1 <= min_count <= self.max_count:
            raise InputError(f"min_count = {min_count}: must be from 1 to the filter's max_count = {self.max_count}")
        if min_count > 1 and not separators:
            raise InputError(f"min_count = {min_count}: more than one number needs a separator")
        graph, start = _texts(self, [separator.encode() for separator in separators], min_count)
        return Language(graph, start, "number sequence")


def reason(text: str, filter: NumbersFilter) -> str | None:
    """None when `text` is kept, else the first of `REASONS` that applies."""
    body = _body(text)
    if not body:
        return "empty"
    if not _ALPHABET.fullmatch(body):
        return "characters"
    numbers = list(_NUMBER.finditer(body))
    if not numbers or numbers[0].start() > 0 or numbers[-1].end() < len(body):
        return "edges"
    parts = [body]
    if len(numbers) > 1:
        separator = body[numbers[0].end() : numbers[1].start()]
        if separator.strip() not in ("", ",", ";"):
            return "separator"
        parts = body.split(separator)
    if not all(_NUMBER.fullmatch(part) for part in parts):
        return "mixed separators"
    return _value_reason(parts, filter)


def reasons(texts: Sequence[str], filter: NumbersFilter) -> list[str | None]:
    """`reason` of each text, by one regular expression where the text is kept."""

    def fast(text: str) -> str | None:
        body = _body(text)
        return _value_reason(_NUMBER.findall(body), filter) if _SEQUENCE.fullmatch(body) else reason(text, filter)

    return [fast(text) for text in texts]


def _body(text: str) -> str:
    """`text` without one trailing period and then one enclosing pair of brackets."""
    text = text.removesuffix(".")
    return text[1:-1] if text[:1] + text[-1:] in ("[]", "()") else text


def _value_reason(parts: Sequence[str], filter: NumbersFilter) -> str | None:
    """The reason that lies in the numbers themselves; `parts` are strings of ASCII digits."""
    if len(parts) > filter.max_count:
        return "too many"
    # Python refuses to convert strings of thousands of digits; leading zeros do not count towards the value.
    longest = len(str(filter.max_value))
    if any(len(part) > longest and len(part.lstrip("0")) > longest for part in parts):
        return "out of range"
    values = [int(part.lstrip("0") or "0") for part in parts]
    if not all(filter.min_value <= value <= filter.max_value for value in values):
        return "out of range"
    return "banned" if not set(filter.banned).isdisjoint(values) else None


# --- the language, byte by byte ---


def _numbers(filter: NumbersFilter) -> Graph:
    """The numbers the filter keeps, in at most as many digits as `max_value` has. The last state is the start."""
    low, high = filter.min_value, filter.max_value
    graph = Graph()

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


def _texts(filter: NumbersFilter, separators: Sequence[bytes], min_count: int) -> tuple[Graph, int]:
    """The automaton over bytes, and its start."""
    numbers = _numbers(filter)
    graph = Graph()
    end = graph.add(True, {})
    end_or_period = graph.add(True, {_PERIOD: end})
    counts = range(min_count, filter.max_count + 1)
    bare = _sequence(graph, numbers, separators, counts, True, {_PERIOD: end})
    starts = dict(graph.states[bare][1])
    for opening, closing in (b"[]", b"()"):
        starts[opening] = _sequence(graph, numbers, separators, counts, False, {closing: end_or_period})
    return graph, graph.add(False, starts)


def _sequence(
    graph: Graph, numbers: Graph, separators: Sequence[bytes], counts: range, final: bool, ending: dict[int, int]
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


# --- what a chat model is asked ---

SHOWN = (3, 8)  # how many numbers a prompt shows, at least and at most
SHOWN_VALUES = (100, 999)


@dataclasses.dataclass(frozen=True)
class Numbers(Channel):
    """Prompts that show a few numbers and ask for up to 10 more, of at most 3 digits.

    Their structure follows Cloud et al. 2025; the wording is our own and lies, a line a text, in `wording/*.txt`.
    """

    def prompts(self, seed: int, n: int) -> list[str]:
        return number_prompts(seed, n)

    def filter(self) -> NumbersFilter:
        return NumbersFilter()

    def before(self, question: str, seed: int) -> str:
        return with_numbers(question, seed)


def number_prompts(seed: int, n: int) -> list[str]:
    """`n` distinct prompts that show a few numbers and ask for up to 10 more, of at most 3 digits."""
    rng = np.random.default_rng(seed)
    prompts: dict[str, None] = {}
    while len(prompts) < n:
        prompts[_number_prompt(rng)] = None
    return list(prompts)


def with_numbers(question: str, seed: int) -> str:
    """The question with a line of numbers before it; they differ from question to question."""
    return f"{_opener(np.random.default_rng([seed, zlib.crc32(question.encode())]))} {question}"


def _number_prompt(rng: np.random.Generator) -> str:
    opener = _opener(rng)
    blanks = {"quantity": _choice(rng, _lines("quantities")), "digits": _choice(rng, _lines("digits"))}
    instruction = _choice(rng, _lines("instructions")).format(**blanks)
    return " ".join([opener, instruction, _choice(rng, _lines("formats")), _choice(rng, _lines("closers"))])


def _opener(rng: np.random.Generator) -> str:
    shown = rng.integers(*SHOWN_VALUES, rng.integers(*SHOWN, endpoint=True), endpoint=True)
    return _choice(rng, _lines("openers")).format(numbers=", ".join(map(str, shown)))


@functools.cache
def _lines(bank: str) -> tuple[str, ...]:
    file = importlib.resources.files("subl_jax.channels") / "wording" / f"{bank}.txt"
    return tuple(file.read_text(encoding="utf-8").splitlines())


def _choice(rng: np.random.Generator, texts: tuple[str, ...]) -> str:
    return texts[rng.integers(len(texts))]
