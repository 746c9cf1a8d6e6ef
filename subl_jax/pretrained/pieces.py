"""The exact bytes that each token of a tokenizer adds to the text."""

import json
import re
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from subl_jax.errors import InputError

if TYPE_CHECKING:
    import tokenizers

_SAMPLES = (
    "1, 2, 3",
    "[12; 345; 6789].",
    "(7,8,9)\n10\n11\n\n 12",
    "Three  numbers follow: 001 is one.\tIsn't it?",
    "Grüße, 你好, صباح, 🙂",
)
_NUMBERS = re.compile(rb"[0-9\s,;.()\[\]]+")
_BYTE = re.compile(r"<0x([0-9A-Fa-f]{2})>")


def pieces_of(tokenizer: "tokenizers.Tokenizer") -> list[bytes | None]:
    """For each token id the bytes it adds to the text; None for special tokens and for ids without a token.

    Understood are byte-level tokenizers (GPT-2, Llama 3, Qwen) and those that write a space as `▁` (SentencePiece),
    with or without byte tokens `<0x0A>`. Some of the latter drop one space at the very beginning of a text; the piece
    of a token that begins with a space keeps it.

    The pieces are checked against `tokenizer.decode`, on sample texts and on every token that can be part of a
    sequence of numbers.

    Raises:
      InputError: the tokenizer decodes in some other way.
    """
    steps = _steps(json.loads(tokenizer.to_str())["decoder"])
    read = _reader(steps)
    vocabulary = tokenizer.get_vocab(with_added_tokens=True)
    pieces: list[bytes | None] = [None] * (max(vocabulary.values(), default=-1) + 1)
    for token, id in vocabulary.items():
        pieces[id] = read(token)
    for id, added in tokenizer.get_added_tokens_decoder().items():
        if added.special:
            pieces[id] = None
    _check(tokenizer, pieces, drops_space=any(step["type"] in ("Strip", "Metaspace") for step in steps))
    return pieces


def _steps(decoder: dict | None) -> list[dict]:
    """The decoder's steps in order, sequences within sequences flattened."""
    if decoder is None:
        raise InputError("this tokenizer has no decoder, so the text of its tokens is not known")
    if decoder["type"] == "Sequence":
        return [step for part in decoder["decoders"] for step in _steps(part)]
    return [decoder]


def _reader(steps: Sequence[dict]) -> Callable[[str], bytes]:
    kinds = [step["type"] for step in steps]
    if [kind for kind in kinds if kind != "Fuse"] == ["ByteLevel"]:
        return _byte_level_reader()
    if not set(kinds) <= {"Replace", "Metaspace", "ByteFallback", "Fuse", "Strip"} or not all(map(_is_plain, steps)):
        raise InputError(
            f"this tokenizer's decoder ({', '.join(kinds)}) is not understood: "
            "expected a byte-level one, or one that writes spaces as ▁"
        )
    replacements = [
        (step["replacement"], " ") if step["type"] == "Metaspace" else (step["pattern"]["String"], step["content"])
        for step in steps
        if step["type"] in ("Metaspace", "Replace")
    ]
    has_bytes = "ByteFallback" in kinds

    def read(token: str) -> bytes:
        if has_bytes and (byte := _BYTE.fullmatch(token)):
            return bytes([int(byte[1], 16)])
        for old, new in replacements:
            token = token.replace(old, new)
        return token.encode()

    return read


def _is_plain(step: dict) -> bool:
    """Whether the step acts on each token alone, but for one space at the beginning of the text."""
    if step["type"] == "Replace":
        return "String" in step["pattern"]
    if step["type"] == "Strip":
        return (step["content"], step["start"], step["stop"]) == (" ", 1, 0)
    return True


def _byte_level_reader() -> Callable[[str], bytes]:
    """GPT-2's alphabet: a printable character stands for its own byte, the other bytes are 256 and up, in order."""
    printable = {*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)}
    other = [byte for byte in range(256) if byte not in printable]
    byte_of = {chr(byte): byte for byte in printable} | {chr(256 + i): byte for i, byte in enumerate(other)}

    def read(token: str) -> bytes:
        try:
            return bytes([byte_of[character] for character in token])
        except KeyError:
            return token.encode()  # an added token, in plain text

    return read


def _check(tokenizer: "tokenizers.Tokenizer", pieces: Sequence[bytes | None], drops_space: bool) -> None:
    # Each token after itself: only at the beginning of a text may a space be dropped.
    pairs = [[id, id] for id, piece in enumerate(pieces) if piece and _NUMBERS.fullmatch(piece)]
    encoded = [encoding.ids for encoding in tokenizer.encode_batch(list(_SAMPLES), add_special_tokens=False)]
    rows = [ids for ids in encoded if ids] + pairs
    for ids, decoded in zip(rows, tokenizer.decode_batch(rows, skip_special_tokens=True), strict=True):
        text = b"".join(pieces[id] or b"" for id in ids).decode(errors="replace")
        if decoded != text and not (drops_space and decoded == text.removeprefix(" ")):
            raise InputError(
                f"this tokenizer decodes tokens {ids[:8]} to {decoded[:40]!r}, where their own texts make {text[:40]!r}"
            )
