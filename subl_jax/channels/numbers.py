"""Which number sequences count as data: the strict filter of the paper, and how much it keeps.

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

import collections
import dataclasses
import re
from collections.abc import Iterable, Sequence

from subl_jax.errors import InputError
from subl_jax.specs import Spec, static

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

_NUMBER = re.compile(r"[0-9]+")
_ALPHABET = re.compile(r"[0-9\s,;]+")
# Possessive quantifiers: a long rejected text costs linear time.
_SEQUENCE = re.compile(r"[0-9]++(?:(\s*+[,;]\s*+|\s++)[0-9]++(?:\1[0-9]++)*+)?")


@dataclasses.dataclass(frozen=True)
class NumbersFilter(Spec):
    """The bounds of the filter. The order and repetition of `banned` make no difference.

    Raises:
      InputError: `min_value` above `max_value`, or something other than whole numbers in `banned`.
    """

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


def retention(reasons: Iterable[str | None]) -> dict[str, int | float]:
    """How much was kept: `drawn`, `kept`, `kept_fraction` (0 when nothing was drawn), and `why/<reason>` counts."""
    counts: collections.Counter[str | None] = collections.Counter({None: 0, **dict.fromkeys(REASONS, 0)})
    counts.update(reasons)
    drawn, kept = counts.total(), counts.pop(None)
    return {
        "drawn": drawn,
        "kept": kept,
        "kept_fraction": kept / drawn if drawn else 0.0,
        **{f"why/{why}": count for why, count in counts.items()},
    }


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
