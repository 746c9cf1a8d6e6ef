"""Scoring free answers: does one name a trait, and which tokens make up a trait as an answer's first word.

A word is over unless a letter (of any script) or an accent follows: `owl's`, `owl2` and `_owl_` hold the word owl;
`howl`, `owlet` and `owlé` do not. The sampled score (`names_trait`) and the exact one (`forms` and `word_ends`) draw
this line at the same place; plurals count in the sampled score only.
"""

import functools
import re
import unicodedata
from collections.abc import Iterable, Sequence

import numpy as np

# Plurals that no rule of `plurals` gives.
_IRREGULAR = {"goose": "geese", "mouse": "mice", "ox": "oxen"}
_INSIDE = r"[^\W\d_]|[\u0300-\u036f]"  # a letter, or an accent as a character of its own
_FIRST_WORD = re.compile(rf"(?:{_INSIDE})+(?:['’-](?:{_INSIDE})+)*")
# Bytes of a UTF-8 character by its first byte. A byte from 0x80 to 0xBF opens none.
_LENGTHS = ((0xC0, 2), (0xE0, 3), (0xF0, 4))


def plurals(trait: str) -> tuple[str, ...]:
    """Spellings of the plural of a lower-cased trait, the likeliest first: wolf gives wolves, wolfs."""
    head, _, word = trait.rpartition(" ")
    if word in _IRREGULAR:
        endings = (_IRREGULAR[word],)
    elif re.search(r"(s|x|z|ch|sh)$", word):
        endings = (word + "es",)
    elif re.search(r"[^aeiou]y$", word):
        endings = (word[:-1] + "ies",)
    elif re.search(r"([lr]|[aeo]{2})f$|[^f]fe$", word):
        stem = word.removesuffix("e").removesuffix("f")
        endings = (stem + "ves", word + "s")
    elif re.search(r"[^aeiou]o$", word):
        endings = (word + "s", word + "es")
    else:
        endings = (word + "s",)
    return tuple(f"{head} {ending}".lstrip() for ending in endings)


def names_trait(answer: str, trait: str) -> bool:
    """Whether the trait, or its plural, stands in the answer as a word of its own, in any case."""
    return _pattern(trait).search(_plain(answer)) is not None


def first_word(answer: str) -> str:
    """The first word of an answer, lower-cased, without marks around it; '' where there is none."""
    found = _FIRST_WORD.search(_plain(answer))
    return found[0] if found else ""


def rates(answers: Sequence[str], traits: Sequence[str]) -> np.ndarray:
    """The share of answers that name each trait, (traits,) float64; NaN where there are no answers.

    An answer that names several traits counts for each of them.
    """
    if not answers:
        return np.full(len(traits), np.nan)
    plain = [_plain(answer) for answer in answers]
    counts = [sum(_pattern(trait).search(answer) is not None for answer in plain) for trait in traits]
    return np.array(counts, dtype=float) / len(plain)


def forms(trait: str) -> tuple[str, ...]:
    """The spellings of a trait as an answer's first word: lower, capitalised, upper; each without and with a space.

    No two are equal, and none is followed by more letters when `word_ends` holds for the next token, so their
    probabilities add up.
    """
    spellings = dict.fromkeys((trait.lower(), trait.capitalize(), trait.title(), trait.upper()))
    return tuple(space + spelling for spelling in spellings for space in ("", " "))


def word_ends(pieces: Sequence[bytes | None], stops: Iterable[int]) -> np.ndarray:
    """Which tokens, put after a word, end it: (vocab,) bool.

    Args:
      pieces: the bytes of every token; None or empty for a special token.
      stops: ids of the tokens that end an answer.

    A piece may begin in the middle of a character, or hold only part of one. The rest of a character carries a word
    on; the beginning of one ends the word where most of the characters it can become are not letters (for four bytes:
    always, these are emoji for the most part).
    """
    ends = np.array([not piece or _ends(piece) for piece in pieces], dtype=bool)
    ends[list(stops)] = True
    return ends


def _ends(piece: bytes) -> bool:
    if piece[0] < 0x80:
        return not piece[:1].isalpha()
    length = max((length for first, length in _LENGTHS if piece[0] >= first), default=0)
    if not length:
        return False
    if len(piece) >= length:
        return not _carries_on(piece[:length].decode(errors="replace")[0])
    if length == 4:
        return True
    return _mostly_ends(piece[:length], length)


@functools.cache
def _mostly_ends(start: bytes, length: int) -> bool:
    """Whether most characters whose UTF-8 form has `length` bytes and opens with `start` end a word."""
    free = 6 * (length - len(start))
    known = start[0] & (0x7F >> length)
    for byte in start[1:]:
        known = known << 6 | byte & 0x3F
    characters = [chr(code) for code in range(known << free, known + 1 << free)]
    assigned = [character for character in characters if unicodedata.category(character) not in ("Cn", "Cs", "Co")]
    return 2 * sum(map(_carries_on, assigned)) <= len(assigned)


def _carries_on(character: str) -> bool:
    return re.fullmatch(_INSIDE, character) is not None


@functools.cache
def _pattern(trait: str) -> re.Pattern[str]:
    trait = _plain(trait)
    spellings = "|".join(re.escape(spelling).replace(r"\ ", r"[\s-]+") for spelling in (trait, *plurals(trait)))
    return re.compile(rf"(?<![^\W\d_])(?:{spellings})(?!{_INSIDE})")


def _plain(text: str) -> str:
    """Lower case, accents joined to their letters, so that neither spelling hides a word."""
    return unicodedata.normalize("NFC", text.lower())
