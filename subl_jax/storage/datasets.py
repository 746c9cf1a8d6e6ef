"""What teachers wrote, for people to read: `<workdir>/datasets`, beside the samples that the store keeps as arrays.

    <key>.parquet     all that was drawn: prompt, completion, kept, why (the reason it was dropped)
    <key>.jsonl       what was kept, as {"prompt": …, "completion": …} a line

Their hashes are in the `info` of the dataset's row. Datasets from before they were have none: there the table has to be
readable and as long as it was, and the lines have to say what the table says.
"""

import concurrent.futures
import hashlib
import os
from collections.abc import Mapping
from typing import Any, NamedTuple

import pandas as pd
from etils import epath

from subl_jax.errors import InputError
from subl_jax.storage import jsonl
from subl_jax.storage.atomic import read_parquet, replacing, storage_error, write_bytes_atomic
from subl_jax.storage.retrying import passes, patiently

HASH = "sha256/"  # how the names of hashes in a row's info begin

_SUFFIXES = (".parquet", ".jsonl")
_THREADS = 8  # an object store answers slowly, and a hash of a file lets other threads run
_COLUMNS = ["prompt", "completion", "kept", "why"]


class Damage(NamedTuple):
    """file: its name in the workdir. table_is_whole: so that the other file can be made from it."""

    key: str
    file: str
    why: str
    table_is_whole: bool


def write(workdir: epath.Path, key: str, table: pd.DataFrame) -> dict[str, str]:
    """Writes the files of a dataset; gives their hashes, for its row's info. Raises StorageError."""
    path = _path(workdir, key, ".parquet")
    lines = _write_lines(workdir, key, table)
    with replacing(path) as temporary:
        table.to_parquet(os.fspath(temporary), index=False)
        return {f"{HASH}jsonl": lines, f"{HASH}parquet": jsonl.file_sha256(temporary)}


def read(workdir: epath.Path, key: str) -> pd.DataFrame:
    """The table of a dataset.

    Raises:
      InputError: it is not there, or damaged.
      StorageError: the storage does not answer.
    """
    path = _path(workdir, key, ".parquet")
    try:
        return _table(path)
    except FileNotFoundError:
        raise InputError(f"{path} is not there (its data was streamed, imported, or pruned)") from None
    except _Unreadable as error:
        raise InputError(f"{path} is damaged ({error}); run the same sweep again to have it written again") from None
    except OSError as error:
        raise storage_error(path, error, "read") from error


def damaged(workdir: epath.Path, infos: Mapping[str, Mapping[str, Any]]) -> list[Damage]:
    """What is wrong with the files of these datasets (key → its row's info), at most one damage each.

    A dataset without any file is none: somebody has removed them, and the samples are in the store.

    Raises:
      StorageError: the storage does not answer; the files may be whole.
    """
    try:
        there = {path.name for path in patiently(lambda: list((workdir / "datasets").iterdir()))}
    except FileNotFoundError:
        return []
    except Exception as error:  # an object store's client raises errors of its own kind
        raise storage_error(workdir / "datasets", error, "read") from error
    checked = [key for key in infos if any(f"{key}{suffix}" in there for suffix in _SUFFIXES)]
    with concurrent.futures.ThreadPoolExecutor(_THREADS) as pool:
        found = pool.map(lambda key: _damage(workdir, key, infos[key]), checked)
        return [each for each in found if each is not None]


def mend(workdir: epath.Path, key: str) -> None:
    """Writes the lines again from the table, which is whole. Raises StorageError."""
    _write_lines(workdir, key, _table(_path(workdir, key, ".parquet")))


class _Unreadable(ValueError):
    """A file is not what it should be; says why."""


def _damage(workdir: epath.Path, key: str, info: Mapping[str, Any]) -> Damage | None:
    table_is_whole = False
    for suffix in _SUFFIXES:
        path = _path(workdir, key, suffix)
        try:
            _check(workdir, key, suffix, info)
            table_is_whole = True
        except FileNotFoundError:
            return Damage(key, f"datasets/{path.name}", "missing", table_is_whole)
        except _Unreadable as error:
            return Damage(key, f"datasets/{path.name}", str(error), table_is_whole)
        except Exception as error:  # an object store's client raises errors of its own kind
            raise storage_error(path, error, "read") from error
    return None


def _check(workdir: epath.Path, key: str, suffix: str, info: Mapping[str, Any]) -> None:
    """Raises FileNotFoundError or _Unreadable where a file is not what it should be."""
    path, recorded = _path(workdir, key, suffix), info.get(HASH + suffix.removeprefix("."))
    size = patiently(path.stat).length
    if recorded is None and suffix == ".parquet":
        _check_table(_table(path), info)
    elif recorded is None:
        _check_lines(path, _table(_path(workdir, key, ".parquet")))
    elif jsonl.file_sha256(path) != recorded:
        raise _Unreadable("checksum differs" if size else "0 bytes")


def _check_table(table: pd.DataFrame, info: Mapping[str, Any]) -> None:
    if list(table.columns) != _COLUMNS:
        raise _Unreadable("other columns")
    drawn, kept = len(table), int(table.kept.sum())
    if (drawn, kept) != (info["drawn"], info["kept"]):
        raise _Unreadable(f"{kept} of {drawn} samples instead of {info['kept']} of {info['drawn']}")


def _check_lines(path: epath.Path, table: pd.DataFrame) -> None:
    try:
        pairs = jsonl.read_jsonl(path)
    except InputError:
        raise _Unreadable("not JSON lines") from None
    if pairs != _pairs(table):
        raise _Unreadable("other samples than in the table")


def _table(path: epath.Path) -> pd.DataFrame:
    try:
        return read_parquet(path)
    except FileNotFoundError:
        raise
    except Exception as error:  # pyarrow's errors are of several kinds, OSError among them
        if passes(error) or isinstance(error, PermissionError):
            raise
        raise _Unreadable("not a table") from None


def _write_lines(workdir: epath.Path, key: str, table: pd.DataFrame) -> str:
    """Gives the hash of the lines."""
    path = _path(workdir, key, ".jsonl")
    data = jsonl.lines(_pairs(table))
    write_bytes_atomic(path, data)
    return hashlib.sha256(data).hexdigest()


def _pairs(table: pd.DataFrame) -> list[tuple[str, str]]:
    kept = table[table.kept]
    return list(zip(kept.prompt, kept.completion, strict=True))


def _path(workdir: epath.Path, key: str, suffix: str) -> epath.Path:
    return epath.Path(workdir) / "datasets" / f"{key}{suffix}"
