"""Terminals that are not UTF-8: what they cannot show is written with the characters that they have."""

import codecs
import io
import sys

_PLAIN = {"×": "x", "−": "-", "–": "-", "…": "...", "→": "->", "≥": ">=", "≤": "<=", "±": "+-", "Δ": "d", "·": "*"}
_HANDLER = "subl_jax-plain"


def allow() -> None:
    """From here on, standard output and errors write `x` for `×` where they must, instead of raising."""
    codecs.register_error(_HANDLER, _plainly)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper) and stream.errors == "strict":
            stream.reconfigure(errors=_HANDLER)


def _plainly(error: UnicodeError) -> tuple[str, int]:
    if not isinstance(error, UnicodeEncodeError):
        raise error
    return "".join(_PLAIN.get(character, "?") for character in error.object[error.start : error.end]), error.end
