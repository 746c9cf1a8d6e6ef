"""Datasets as JSON lines, {"prompt": …, "completion": …}: the format of the paper's public code."""

import hashlib
import json
from collections.abc import Iterable

import pandas as pd
from etils import epath

from subl_jax.atomic import write_bytes_atomic
from subl_jax.errors import InputError


def write_jsonl(path: epath.PathLike, pairs: Iterable[tuple[str, str]]) -> None:
    """Writes (prompt, completion) pairs, one object a line. Raises StorageError."""
    frame = pd.DataFrame(pairs, columns=["prompt", "completion"])
    write_bytes_atomic(path, frame.to_json(orient="records", lines=True).encode())


def read_jsonl(path: epath.PathLike) -> list[tuple[str, str]]:
    """The (prompt, completion) pairs of a file. Blank lines and further keys are passed over.

    Raises:
      InputError: the file is missing or holds no pair, or a line (named) is not such an object.
    """
    path = epath.Path(path)
    try:
        text = path.read_bytes().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise InputError(f"{path}: not UTF-8 text (byte {error.start}); expected JSON lines") from None
    except OSError as error:
        raise InputError(f"{path}: cannot read the dataset: {error.strerror or error}") from None
    # Not splitlines(): it also breaks at characters that JSON allows inside a string.
    lines = enumerate(text.split("\n"), start=1)
    pairs = [_pair(f"{path}:{number}", line) for number, line in lines if line.strip()]
    if not pairs:
        raise InputError(f'{path}: no data; expected one {{"prompt": …, "completion": …}} a line')
    return pairs


def file_sha256(path: epath.PathLike) -> str:
    """SHA-256 of a file's content, in hexadecimal."""
    with epath.Path(path).open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _pair(where: str, line: str) -> tuple[str, str]:
    try:
        record = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise InputError(f"{where}: not JSON: {error}") from None
    if not isinstance(record, dict):
        raise InputError(f'{where}: expected {{"prompt": …, "completion": …}}, got a {type(record).__name__}')
    for key in ("prompt", "completion"):
        if key not in record:
            raise InputError(f"{where}: {key!r} is missing; the line has {', '.join(record) or 'no keys'}")
        if not isinstance(record[key], str):
            raise InputError(f"{where}: {key!r} must be a string, got {type(record[key]).__name__}")
    return record["prompt"], record["completion"]
