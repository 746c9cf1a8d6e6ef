"""Datasets as JSON lines: {"prompt": …, "completion": …}, the format of the paper's public code, or {"messages": …}.

A byte-order mark, Windows line ends and empty lines are passed over.
"""

import hashlib
import json
from collections.abc import Iterable, Iterator
from typing import Any

import pandas as pd
from etils import epath

from subl_jax.errors import InputError
from subl_jax.storage.atomic import write_bytes_atomic
from subl_jax.storage.retrying import patiently

EXAMPLE = '{"prompt": …, "completion": …} or {"messages": […]}'


def write_jsonl(path: epath.PathLike, pairs: Iterable[tuple[str, str]]) -> None:
    """Writes (prompt, completion) pairs, one object a line. Raises StorageError."""
    write_bytes_atomic(path, lines(pairs))


def lines(pairs: Iterable[tuple[str, str]]) -> bytes:
    """(prompt, completion) pairs, one object a line."""
    return pd.DataFrame(pairs, columns=["prompt", "completion"]).to_json(orient="records", lines=True).encode()


def message_lines(pairs: Iterable[tuple[str, str]]) -> bytes:
    """(prompt, completion) pairs as conversations of a user and an assistant, one {"messages": […]} a line."""
    return b"".join(json.dumps({"messages": _messages(*pair)}, ensure_ascii=False).encode() + b"\n" for pair in pairs)


def _messages(prompt: str, completion: str) -> list[dict[str, str]]:
    return [{"role": "user", "content": prompt}, {"role": "assistant", "content": completion}]


def read_jsonl(path: epath.PathLike) -> list[tuple[str, str]]:
    """The (prompt, completion) pairs of a file. Blank lines and further keys are passed over.

    Raises:
      InputError: the file is missing or holds no pair, or a line (named) is not such an object.
    """
    return [pair for _, pair in placed_pairs(path)]


def placed_pairs(path: epath.PathLike) -> list[tuple[str, tuple[str, str]]]:
    """As `read_jsonl`, each with its place, `file:line`."""
    return [(where, pair_of(where, record)) for where, record in records(path, EXAMPLE)]


def records(path: epath.PathLike, example: str) -> Iterator[tuple[str, dict]]:
    """Each object of a JSON lines file, with its place (`file:line`) for messages. Blank lines are passed over.

    Raises:
      InputError: the file is missing or holds nothing, or a line is not an object; `example` shows what one should be.
    """
    path = epath.Path(path).expanduser()
    try:
        text = patiently(path.read_bytes).decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise InputError(f"{path}: not UTF-8 text (byte {error.start}); expected JSON lines") from None
    except OSError as error:
        raise InputError(f"{path}: cannot read the dataset: {error.strerror or error}") from None
    if not text.strip():
        raise InputError(f"{path}: no data; expected one {example} a line")
    # Not splitlines(): it also breaks at characters that JSON allows inside a string.
    for number, line in enumerate(text.split("\n"), start=1):
        if line.strip():
            yield f"{path}:{number}", _record(f"{path}:{number}", line, example)


def file_sha256(path: epath.PathLike) -> str:
    """SHA-256 of a file's content, in hexadecimal."""

    def digest() -> str:
        with epath.Path(path).expanduser().open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()

    return patiently(digest)


def _record(where: str, line: str, example: str) -> dict:
    try:
        record = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise InputError(f"{where}: not JSON: {error}") from None
    if not isinstance(record, dict):
        raise InputError(f"{where}: expected {example}, got a {type(record).__name__}")
    return record


def pair_of(where: str, record: dict) -> tuple[str, str]:
    """The prompt and the completion of an object. Raises InputError: it has none; `where` is its place."""
    if "messages" in record and "prompt" not in record:
        return _of_messages(where, record["messages"])
    for key in ("prompt", "completion"):
        if key not in record:
            raise InputError(f"{where}: {key!r} is missing; the line has {_few(record) or 'no keys'}")
        if not isinstance(record[key], str):
            raise InputError(f"{where}: {key!r} must be a string, got {type(record[key]).__name__}")
    return record["prompt"], record["completion"]


def _of_messages(where: str, messages: Any) -> tuple[str, str]:
    turns = messages if isinstance(messages, list) else []
    good = [turn for turn in turns if isinstance(turn, dict) and isinstance(turn.get("content"), str)]
    roles = [turn.get("role") for turn in good]
    if roles == ["user", "assistant"] and len(turns) == 2:
        return good[0]["content"], good[1]["content"]
    if roles[:1] == ["system"]:
        raise InputError(
            f"{where}: 'messages' begin with a system prompt; that is the world's (its field `system`): leave it out"
        )
    found = ", ".join(str(role) for role in roles[:6]) or "none"
    raise InputError(f"{where}: 'messages' must be a user's and an assistant's, each with a content; found: {found}")


def _few(record: dict) -> str:
    names = [name if len(name) <= 30 else f"{name[:30]}…" for name in map(str, record)]
    return ", ".join(names[:8]) + (f" and {len(names) - 8} more" if len(names) > 8 else "")
