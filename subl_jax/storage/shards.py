"""A batch of finished nodes on the disk: a *shard*, which is two files in `<workdir>/artifacts`.

    <shard id>.json                       the sidecar: its rows (key, status), their specs compressed, as specs of a
                                          batch are much alike, and the data file's name and hash
    <shard id>-<random>.safetensors       every leaf stacked, leading axis = row; curves and their steps beside them

The sidecar is written last and commits the shard. The data file has a new name each time, so a shard that is written
again never touches the data that the old sidecar points to. The shard id is made from the keys of its rows.
"""

import base64
import collections
import contextlib
import dataclasses
import functools
import hashlib
import json
import os
import tempfile
import uuid
import zlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Self

import numpy as np
import safetensors
import safetensors.numpy
from etils import epath

from subl_jax.errors import StorageError
from subl_jax.storage.atomic import is_local, replacing, storage_error, write_json_atomic
from subl_jax.storage.jsonl import file_sha256
from subl_jax.storage.retrying import passes, patiently

FORMAT = 2  # 1 had each row's spec in it
STATUSES = ("ok", "diverged", "failed")  # from best to worst

_OPEN_SHARDS = 8


@dataclasses.dataclass(frozen=True)
class Row:
    """One stored node. `why` is one line for what is not ok, `info` JSON scalars.

    `spec` is its JSON form. Rows that the store gives are without it (`Store.spec`).
    """

    key: str
    spec: dict[str, Any] | None
    status: str = "ok"
    why: str | None = None
    info: dict[str, Any] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True)
class Shard:
    """What a sidecar says. data, sha256, bytes: of the data file, where there is one."""

    id: str
    stage: str
    rows: tuple[Row, ...]
    data: str | None
    sha256: str | None
    bytes: int
    specs: str  # of the rows, as `packed` gives them
    bare: bool = False  # its arrays were let go; curves and rows are there

    @classmethod
    def of(cls, id: str, fields: Mapping[str, Any]) -> Self:
        """From JSON, with fields of its own or with those of a sidecar. Raises KeyError and TypeError as it may."""
        rows = tuple(Row(spec=None, **row) for row in fields["rows"])
        names = ("stage", "data", "sha256", "bytes", "specs", "bare")
        return cls(id=id, rows=rows, **{name: fields[name] for name in names})

    @property
    def fields(self) -> dict[str, Any]:
        """The inverse of `of`, without the id."""
        fields = dataclasses.asdict(self)
        del fields["id"]
        for row in fields["rows"]:
            del row["spec"]
        return fields

    @property
    def entry(self) -> dict[str, Any]:
        """As JSON, for the store of another process."""
        return {"id": self.id, **self.fields}


def batch_id(keys: Sequence[str]) -> str:
    """The name under which a batch of these nodes is stored."""
    return hashlib.sha256("\n".join(keys).encode()).hexdigest()[:24]


def packed(specs: Sequence[Any]) -> str:
    """JSON in few characters."""
    return base64.b64encode(zlib.compress(json.dumps(specs).encode())).decode()


@functools.lru_cache(maxsize=8)
def unpacked(text: str) -> list[Any]:
    """To be read only: it is kept. Raises ValueError or zlib.error where it is damaged."""
    return json.loads(zlib.decompress(base64.b64decode(text)))


class Unusable(Exception):
    """Why a sidecar is not used, as the end of a line. damaged: it is none, and may go."""

    def __init__(self, line: str, damaged: bool = False) -> None:
        super().__init__(line)
        self.damaged = damaged


class ShardFiles:
    """The folder of shards. What is in it is for the store to know. Works on local disks and object stores."""

    def __init__(self, directory: epath.Path) -> None:
        self._directory = directory
        self._open: collections.OrderedDict[str, Any] = collections.OrderedDict()

    @property
    def is_local(self) -> bool:
        return is_local(self._directory)

    def listing(self) -> list[epath.Path]:
        """Every file. Raises StorageError."""
        try:
            # Not `exists()`: some clients say no when they cannot tell.
            return patiently(lambda: list(self._directory.iterdir()))
        except FileNotFoundError:
            return []
        except Exception as error:  # an object store's client raises errors of its own kind
            raise storage_error(self._directory, error, "read") from error

    def sidecar(self, id: str) -> epath.Path:
        return self._directory / f"{id}.json"

    def read(self, sidecar: epath.Path) -> Shard:
        """Raises Unusable."""
        try:
            fields = json.loads(patiently(sidecar.read_bytes))
            if fields["format"] not in (1, FORMAT):
                raise Unusable(f"has format {fields['format']}, not {FORMAT}: it is not used")
            if fields["format"] == 1:
                fields["specs"] = packed([row.pop("spec") for row in fields["rows"]])
                fields.setdefault("bare", False)
            shard = Shard.of(sidecar.stem, fields)
            if not all(isinstance(row.key, str) and row.status in STATUSES for row in shard.rows):
                raise ValueError("unknown key or status")
            return shard
        except OSError as error:
            raise Unusable(f"cannot be read ({error.strerror or error}): it is not used") from None
        except (ValueError, KeyError, TypeError, RecursionError):
            line = "is damaged (not a sidecar): its nodes will be computed again"
            raise Unusable(line, damaged=True) from None

    def write_data(self, id: str, tensors: dict[str, np.ndarray], structure: Any) -> tuple[str, str, int]:
        """Writes a data file; gives its name, hash and size. Raises StorageError."""
        path = self._directory / f"{id}-{uuid.uuid4().hex[:8]}.safetensors"
        try:
            with replacing(path) as temporary:
                safetensors.numpy.save_file(tensors, os.fspath(temporary), metadata={"tree": json.dumps(structure)})
                sha256, size = file_sha256(temporary), temporary.stat().length
        except safetensors.SafetensorError as error:
            raise _data_error(path, error) from error
        return path.name, sha256, size

    def commit(self, shard: Shard) -> None:
        """Writes the sidecar: from here on the shard is there. Raises StorageError."""
        write_json_atomic(self.sidecar(shard.id), {"format": FORMAT, **shard.fields})

    def damage(self, shard: Shard) -> str:
        """How the data file differs from what the sidecar says; empty if it does not. Raises StorageError."""
        if shard.data is None:
            return ""
        path = self._directory / shard.data
        try:
            size = patiently(path.stat).length
            if size != shard.bytes:
                return f"{size} bytes instead of {shard.bytes}"
            return "" if file_sha256(path) == shard.sha256 else "checksum differs"
        except FileNotFoundError:
            return "missing"
        except Exception as error:  # an object store's client raises errors of its own kind
            if passes(error) or not isinstance(error, OSError):  # its data may be whole
                raise storage_error(path, error, "read") from error
            return error.strerror or str(error)

    @contextlib.contextmanager
    def reading(self, shard: Shard) -> Iterator[Any]:
        """The open data file of a shard that has been checked."""
        file = self._open.pop(shard.id, None) or self._opened(shard)
        self._open[shard.id] = file
        while len(self._open) > _OPEN_SHARDS:
            self._open.popitem(last=False)
        yield file

    def close(self, shard: Shard) -> None:
        """Its data file is not the one to read any more."""
        self._open.pop(shard.id, None)

    def remove(self, name: str | None) -> None:
        """What cannot be removed now is harmless: no index has it, and the next opening tries again."""
        if name is not None:
            with contextlib.suppress(Exception):  # an object store's client raises errors of its own kind
                patiently(lambda: (self._directory / name).unlink(missing_ok=True))

    def _opened(self, shard: Shard) -> Any:
        path = self._directory / shard.data
        if is_local(path):
            return safetensors.safe_open(os.fspath(path), framework="np")
        # A memory-mapped file stays readable after its name is gone.
        with tempfile.TemporaryDirectory() as scratch:
            local = epath.Path(scratch) / shard.data
            patiently(lambda: path.copy(local, overwrite=True))
            return safetensors.safe_open(os.fspath(local), framework="np")


def _data_error(path: epath.Path, error: Exception) -> StorageError:
    """safetensors reports the system's error as text only: `… I/O error: No space left on device (os error 28) …`."""
    number = str(error).partition("(os error ")[2].partition(")")[0]
    return storage_error(path, OSError(int(number), "") if number.isdigit() else error)
