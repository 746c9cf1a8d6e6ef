"""Finished nodes by key: what a rerun, a killed run and a larger sweep reuse.

Lanes are stored as they were computed, a batch at a time. One batch is a *shard* of two files in
`<workdir>/artifacts`:

    <shard id>.json                       the sidecar: its rows (key, status), their specs compressed, as specs of a
                                          batch are much alike, and the data file's name and hash
    <shard id>-<random>.safetensors       every leaf stacked, leading axis = row; curves and their steps beside them

The sidecar is written last and commits the shard. The data file has a new name each time, so a shard that is written
again never touches the data that the old sidecar points to. The shard id is made from the keys of its rows.

Works on local disks and object stores (`gs://…`).
"""

import base64
import collections
import contextlib
import copy
import dataclasses
import functools
import hashlib
import json
import os
import tempfile
import threading
import uuid
import zlib
from collections.abc import Callable, Container, Iterable, Iterator, Mapping, Sequence
from typing import Any, Self

import filelock
import numpy as np
import safetensors
import safetensors.numpy
from etils import epath

from subl_jax.errors import InputError, StorageError
from subl_jax.storage.atomic import TEMPORARY, is_local, replacing, storage_error, write_json_atomic
from subl_jax.storage.jsonl import file_sha256
from subl_jax.storage.retrying import passes, patiently

FORMAT = 2  # 1 had each row's spec in it
STATUSES = ("ok", "diverged", "failed")  # from best to worst

_DTYPES = frozenset(
    ("bool", "int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64")
    + ("float16", "bfloat16", "float32", "float64", "complex64")
)
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
class _Shard:
    id: str
    stage: str
    rows: tuple[Row, ...]
    data: str | None
    sha256: str | None
    bytes: int
    specs: str  # of the rows, as `_packed` gives them
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


def _packed(specs: Sequence[Any]) -> str:
    """JSON in few characters."""
    return base64.b64encode(zlib.compress(json.dumps(specs).encode())).decode()


@functools.lru_cache(maxsize=8)
def _unpacked(text: str) -> list[Any]:
    """To be read only: it is kept."""
    return json.loads(zlib.decompress(base64.b64decode(text)))


# --- the working directory ---


def open_workdir(path: epath.PathLike) -> epath.Path:
    """The directory, made where it is missing.

    Raises:
      InputError: it cannot be made or written to.
    """
    try:
        workdir = epath.Path(path).expanduser()
        patiently(lambda: workdir.mkdir(parents=True, exist_ok=True))
        probe = workdir / f".probe{TEMPORARY}-{uuid.uuid4().hex[:12]}"
        patiently(lambda: probe.write_bytes(b""))
        patiently(lambda: probe.unlink(missing_ok=True))
    except Exception as error:  # an object store's client raises errors of its own kind
        reason = getattr(error, "strerror", None) or (str(error).splitlines() or [type(error).__name__])[0]
        raise InputError(f"--workdir {os.fspath(path)}: {reason}; give a directory that can be written to") from None
    return workdir


@contextlib.contextmanager
def lock(workdir: epath.PathLike) -> Iterator[None]:
    """Holds `workdir` for this process; the system lets go of it however the process ends.

    Object stores have no locks: there, two sweeps in one directory compute some nodes twice, and are otherwise safe.

    Raises:
      InputError: another process holds it.
      StorageError: the lock file cannot be made.
    """
    if not is_local(workdir):
        yield
        return
    path = epath.Path(workdir) / ".lock"
    held = filelock.FileLock(os.fspath(path), timeout=0)
    try:
        held.acquire()
    except filelock.Timeout:
        raise InputError(
            f"--workdir {os.fspath(workdir)}: another sweep is running in it; wait for it or use another --workdir"
        ) from None
    except (OSError, NotImplementedError) as error:
        raise storage_error(path, error) from error
    try:
        yield
    finally:
        held.release()


# --- the store ---


def batch_id(keys: Sequence[str]) -> str:
    """The name under which a batch of these nodes is stored."""
    return hashlib.sha256("\n".join(keys).encode()).hexdigest()[:24]


def _entry(shard: _Shard) -> dict[str, Any]:
    return {"id": shard.id, **shard.fields}


def _exclusive(method: Callable[..., Any]) -> Callable[..., Any]:
    """One thread at a time: a batch may be written while another thread reads."""

    @functools.wraps(method)
    def held(self: "Store", *args: Any, **kwargs: Any) -> Any:
        with self._mutex:
            return method(self, *args, **kwargs)

    return held


class Store:
    """The artefacts of one working directory. Threads may share it.

    Opening reads the sidecars only; arrays are read when asked for, and the hash of a data file is checked once, before
    its first use. A damaged shard is reported through `warn` and forgotten, so that it is computed again.

    Args:
      workdir: the directory, which exists.
      warn: gets one line per damaged shard.
      readonly: nothing is written or removed. Otherwise the caller holds `lock(workdir)`: what killed processes and
        damaged shards left behind is removed.
      tidy: false keeps what killed processes left behind, some of which may still be dying: `remove_leftovers` later.
      shared: one of several writers, which holds no lock. It starts without an index and knows what it puts itself and
        what it is told of (`find`); nothing that another writer may need is removed, and a batch that another writer
        has put first stays.
      entries: what is stored, as `entries` of another process's store gave it; then nothing is read at opening, and
        that process holds the lock.
    """

    def __init__(
        self,
        workdir: epath.PathLike,
        warn: Callable[[str], None] = print,
        *,
        readonly: bool = False,
        tidy: bool = True,
        shared: bool = False,
        entries: Sequence[dict[str, Any]] | None = None,
    ) -> None:
        self._mutex = threading.RLock()
        self._directory = epath.Path(workdir) / "artifacts"
        self._warn = warn
        self._readonly = readonly
        self._shared = shared
        self._shards: dict[str, _Shard] = {}
        self._places: dict[str, dict[str, int]] = {}  # key → shard id → row; the same node may be in two batches
        self._checked: set[str] = set()  # shards whose data this process has hashed
        self._open: collections.OrderedDict[str, Any] = collections.OrderedDict()
        if entries is not None:
            for entry in entries:
                self.adopt(entry)
        elif not shared:
            for path in sorted(self._files()):
                if path.suffix == ".json":
                    self._find(path)
            # On an object store another sweep may be between its data and its sidecar.
            if tidy and not readonly and is_local(self._directory):
                self.remove_leftovers()

    def put(
        self,
        stage: str,
        rows: Sequence[Row],
        tree: Any = None,
        curves: Mapping[str, np.ndarray] | None = None,
        steps: np.ndarray | None = None,
        bare: bool = False,
        specs: str = "",
    ) -> dict[str, Any]:
        """Stores one batch, whole or not at all. A batch of the same keys is replaced. Returns its entry, for `adopt`.

        Args:
          stage: what computed the rows.
          rows: one per lane.
          tree: nested dicts and lists of arrays (rows, ...); None when the lanes have no arrays.
          curves: metric → (rows, points).
          steps: (points,) or (rows, points) int, the steps at which the curves were taken.
          bare: the tree is left out; the nodes count as stored all the same.
          specs: the rows' specs as a shard has them, in place of those in the rows.

        Raises:
          StorageError: disk full, no permission; what was stored before is untouched.
          ValueError: keys repeat, or a leading axis is not the number of rows.
        """
        assert not self._readonly, "this store was opened to read"
        if not rows or len({row.key for row in rows}) < len(rows):
            raise ValueError(f"{stage}: the rows of a batch need keys that differ")
        unknown = {row.status for row in rows} - set(STATUSES)
        if unknown:
            raise ValueError(f"{stage}: status {unknown} is none of {STATUSES}")
        tensors, structure = _tensors(len(rows), None if bare else tree, curves or {}, steps)
        id = batch_id([row.key for row in rows])
        data = sha256 = None
        size = 0
        if tensors or tree is not None:
            data, sha256, size = self._put_data(id, tensors, structure)
        without = tuple(dataclasses.replace(row, spec=None) for row in rows)
        packed = specs or _packed([row.spec for row in rows])
        shard = _Shard(id, stage, without, data, sha256, size, packed, bare)
        if self.has_batch([row.key for row in rows]):
            self._remove(data)
            return _entry(self._shards[id])
        try:
            write_json_atomic(self._directory / f"{id}.json", {"format": FORMAT, **shard.fields})
        except StorageError:
            self._remove(data)
            raise
        self._replace(shard)
        return _entry(shard)

    @_exclusive
    def _replace(self, shard: _Shard) -> None:
        old = self._shards.get(shard.id)
        if old is not None:
            self._forget(old)
            self._remove(old.data)
        self._remember(shard)
        self._checked.add(shard.id)

    @_exclusive
    def bare(self) -> set[str]:
        """The keys of nodes whose arrays were let go."""
        return {key for key in self._places if self._place(key)[0].bare}

    @_exclusive
    def strippable(self, keys: Container[str]) -> dict[str, int]:
        """The batches that hold arrays of none but these nodes: id → bytes of their data."""
        return {
            shard.id: shard.bytes
            for shard in self._shards.values()
            if shard.data is not None and not shard.bare and all(row.key in keys for row in shard.rows)
        }

    @_exclusive
    def strip(self, id: str) -> dict[str, Any]:
        """Lets go of the arrays of a batch; rows and curves stay. Returns its entry. Raises as `get` and `put`."""
        shard = self._shards[id]
        with self._reading(shard) as file:
            steps, curves = _curves_in(file, file.get_tensor)
        return self.put(shard.stage, shard.rows, None, curves, steps, bare=True, specs=shard.specs)

    @_exclusive
    def strangers(self, keys: Container[str]) -> dict[str, int]:
        """The batches that hold none of these nodes: id → bytes of their data."""
        return {
            shard.id: shard.bytes for shard in self._shards.values() if not any(row.key in keys for row in shard.rows)
        }

    @_exclusive
    def remove(self, id: str) -> None:
        """Removes a batch and all it holds."""
        shard = self._shards[id]
        self._forget(shard)
        self._remove(f"{id}.json")
        self._remove(shard.data)

    @_exclusive
    def entries(self) -> list[dict[str, Any]]:
        """What is stored, as JSON, for the store of another process on the same directory."""
        return [_entry(shard) for shard in self._shards.values()]

    @_exclusive
    def adopt(self, entry: dict[str, Any]) -> None:
        """Takes a shard that another process has put into the index."""
        shard = _Shard.of(entry["id"], entry)
        old = self._shards.get(shard.id)
        if old != shard:
            if old is not None:
                self._forget(old)
            self._remember(shard)

    @_exclusive
    def find(self, ids: Iterable[str]) -> bool:
        """Takes up batches that other writers have put, by their ids. Whether all of them are there."""
        there = True
        for id in ids:
            path = self._directory / f"{id}.json"
            if id not in self._shards and patiently(path.exists):
                self._find(path)
            there &= id in self._shards
        return there

    def has_batch(self, keys: Sequence[str]) -> bool:
        """Whether another writer has put these very nodes as a batch; never where this store is the only writer."""
        return self._shared and self.find([batch_id(keys)])

    @_exclusive
    def batches(self, keys: Iterable[str]) -> set[str]:
        """The ids of the batches that hold these nodes. Raises KeyError when one is not stored."""
        return {self._place(key)[0].id for key in keys}

    @_exclusive
    def remove_leftovers(self) -> None:
        """Removes what killed writers left behind. No other writer may be at work."""
        paths = self._files()
        self.find(path.stem for path in paths if path.suffix == ".json")
        used = {shard.data for shard in self._shards.values()}
        for path in paths:
            if TEMPORARY in path.name or (path.suffix == ".safetensors" and path.name not in used):
                self._remove(path.name)

    @_exclusive
    def done(self) -> dict[str, str]:
        """Key → status of every stored node."""
        return {key: self.status(key) for key in self._places}

    @_exclusive
    def spec(self, key: str) -> dict[str, Any]:
        """The spec of a node, in its JSON form.

        Raises:
          KeyError: the node is not stored.
          StorageError: its sidecar is damaged.
        """
        shard, index = self._place(key)
        try:
            return copy.deepcopy(_unpacked(shard.specs)[index])
        except (ValueError, IndexError, zlib.error) as error:
            raise StorageError(
                f"artifacts/{shard.id}.json is damaged: its specs cannot be read ({error}); remove it and run the same "
                "command again to compute its nodes again"
            ) from error

    @_exclusive
    def stage(self, key: str) -> str:
        """The stage that computed a node. Raises KeyError when it is not stored."""
        return self._place(key)[0].stage

    @_exclusive
    def row(self, key: str) -> Row:
        """A node without its arrays. Raises KeyError when it is not stored."""
        shard, index = self._place(key)
        return shard.rows[index]

    def status(self, key: str) -> str:
        """`ok`, `diverged` or `failed`. Raises KeyError when the node is not stored."""
        return self.row(key).status

    @_exclusive
    def get(self, key: str) -> Any:
        """The arrays of one node, as they were put but without the leading axis; None when it has none.

        Raises:
          KeyError: the node is not stored.
          StorageError: its shard turned out to be damaged, and is forgotten.
        """
        shard, index = self._place(key)
        if shard.data is None:
            return None
        with self._reading(shard) as file:
            structure = json.loads(file.metadata()["tree"])
            return _map_names(lambda name: _row_of(file, name, index), structure)

    @_exclusive
    def curves(self, key: str) -> tuple[np.ndarray, dict[str, np.ndarray]]:
        """`(steps, {metric: values})`, each (points,); empty where a node has no curves. Raises as `get`."""
        shard, index = self._place(key)
        if shard.data is None:
            return np.zeros(0, int), {}
        with self._reading(shard) as file:
            steps, values = _curves_in(file, lambda name: _row_of(file, name, index))
        return np.zeros(0, int) if steps is None else steps, values

    def many_curves(self, keys: Sequence[str]) -> Iterator[tuple[np.ndarray, np.ndarray, dict[str, np.ndarray]]]:
        """The curves of many nodes, a batch at a time: `(which, steps, {metric: values})`. Raises as `get`.

        which: (rows,) int, places in `keys`; every node that has curves comes in one batch.
        steps: (points,) or (rows, points); values: (rows, points).
        """
        places: dict[str, list[tuple[int, int]]] = {}
        with self._mutex:
            for i, key in enumerate(keys):
                shard, index = self._place(key)
                if shard.data is not None:
                    places.setdefault(shard.id, []).append((i, index))
        for id, pairs in places.items():
            which, rows = np.array(pairs).T
            with self._mutex, self._reading(self._shards[id]) as file:
                steps, values = _curves_in(file, lambda name, file=file, rows=rows: file.get_tensor(name)[rows])
            if values:
                yield which, steps, values

    @_exclusive
    def verify(self, keys: Iterable[str]) -> set[str]:
        """The keys, of those given, that are stored and whose data is whole; damaged shards are forgotten."""
        keys = list(keys)
        shards = {self._place(key)[0].id for key in keys if key in self._places}
        while shards:
            for id in shards:
                self._check(self._shards[id])
            # A key whose shard was forgotten may be in another one.
            shards = {self._place(key)[0].id for key in keys if key in self._places} - self._checked
        return {key for key in keys if key in self._places}

    # --- index ---

    def _files(self) -> list[epath.Path]:
        try:
            # Not `exists()`: some clients say no when they cannot tell.
            return patiently(lambda: list(self._directory.iterdir()))
        except FileNotFoundError:
            return []
        except Exception as error:  # an object store's client raises errors of its own kind
            raise storage_error(self._directory, error, "read") from error

    def _find(self, sidecar: epath.Path) -> None:
        shard = self._read_sidecar(sidecar)
        if shard is not None:
            self._remember(shard)

    def _read_sidecar(self, path: epath.Path) -> _Shard | None:
        try:
            sidecar = json.loads(patiently(path.read_bytes))
            if sidecar["format"] not in (1, FORMAT):
                self._warn(f"artifacts/{path.name} has format {sidecar['format']}, not {FORMAT}: it is not used")
                return None
            if sidecar["format"] == 1:
                sidecar["specs"] = _packed([row.pop("spec") for row in sidecar["rows"]])
                sidecar.setdefault("bare", False)
            shard = _Shard.of(path.stem, sidecar)
            if not all(isinstance(row.key, str) and row.status in STATUSES for row in shard.rows):
                raise ValueError("unknown key or status")
            return shard
        except OSError as error:
            self._warn(f"artifacts/{path.name} cannot be read ({error.strerror or error}): it is not used")
        except (ValueError, KeyError, TypeError, RecursionError):
            self._warn(f"artifacts/{path.name} is damaged (not a sidecar): its nodes will be computed again")
            if self._owner:
                self._remove(path.name)
        return None

    def _remember(self, shard: _Shard) -> None:
        self._shards[shard.id] = shard
        for index, row in enumerate(shard.rows):
            self._places.setdefault(row.key, {})[shard.id] = index

    def _forget(self, shard: _Shard) -> None:
        del self._shards[shard.id]
        self._checked.discard(shard.id)
        self._open.pop(shard.id, None)
        for row in shard.rows:
            del self._places[row.key][shard.id]
            if not self._places[row.key]:
                del self._places[row.key]

    def _place(self, key: str) -> tuple[_Shard, int]:
        """Where the best copy of a node is: a lane that failed may have been computed again in another batch."""
        places = [(self._shards[id], index) for id, index in self._places[key].items()]
        return min(places, key=lambda place: (STATUSES.index(place[0].rows[place[1]].status), place[0].bare))

    # --- data files ---

    def _put_data(self, id: str, tensors: dict[str, np.ndarray], structure: Any) -> tuple[str, str, int]:
        """Writes a data file; gives its name, hash and size."""
        path = self._directory / f"{id}-{uuid.uuid4().hex[:8]}.safetensors"
        try:
            with replacing(path) as temporary:
                safetensors.numpy.save_file(tensors, os.fspath(temporary), metadata={"tree": json.dumps(structure)})
                sha256, size = file_sha256(temporary), temporary.stat().length
        except safetensors.SafetensorError as error:
            raise _data_error(path, error) from error
        return path.name, sha256, size

    @contextlib.contextmanager
    def _reading(self, shard: _Shard) -> Iterator[Any]:
        """The open data file of a shard, checked before its first use."""
        if not self._check(shard):
            raise StorageError(f"artifacts/{shard.data} is damaged; run the same command again to compute it again")
        file = self._open.pop(shard.id, None) or self._open_data(shard)
        self._open[shard.id] = file
        while len(self._open) > _OPEN_SHARDS:
            self._open.popitem(last=False)
        yield file

    def _open_data(self, shard: _Shard) -> Any:
        path = self._directory / shard.data
        if is_local(path):
            return safetensors.safe_open(os.fspath(path), framework="np")
        # A memory-mapped file stays readable after its name is gone.
        with tempfile.TemporaryDirectory() as scratch:
            local = epath.Path(scratch) / shard.data
            patiently(lambda: path.copy(local, overwrite=True))
            return safetensors.safe_open(os.fspath(local), framework="np")

    def _check(self, shard: _Shard) -> bool:
        """Whether the data file is what the sidecar says; if not, the shard is forgotten."""
        if shard.id in self._checked or shard.data is None:
            self._checked.add(shard.id)
            return True
        path = self._directory / shard.data
        try:
            size = patiently(path.stat).length
            if size != shard.bytes:
                damage = f"{size} bytes instead of {shard.bytes}"
            else:
                damage = "" if file_sha256(path) == shard.sha256 else "checksum differs"
        except FileNotFoundError:
            damage = "missing"
        except Exception as error:  # an object store's client raises errors of its own kind
            if passes(error) or not isinstance(error, OSError):  # its data may be whole
                raise storage_error(path, error, "read") from error
            damage = error.strerror or str(error)
        if not damage:
            self._checked.add(shard.id)
            return True
        count = f"its {len(shard.rows)} {shard.stage} results" if len(shard.rows) > 1 else f"its {shard.stage} result"
        self._warn(f"artifacts/{shard.data} is damaged ({damage}): {count} will be computed again")
        self._forget(shard)
        if self._owner:
            self._remove(f"{shard.id}.json")
            self._remove(shard.data)
        return False

    @property
    def _owner(self) -> bool:
        return not self._readonly and not self._shared

    def _remove(self, name: str | None) -> None:
        # What cannot be removed now is harmless: it is not in the index, and the next opening tries again.
        if name is not None:
            with contextlib.suppress(Exception):  # an object store's client raises errors of its own kind
                patiently(lambda: (self._directory / name).unlink(missing_ok=True))


# --- trees as named tensors ---


def _tensors(
    n: int, tree: Any, curves: Mapping[str, np.ndarray], steps: np.ndarray | None
) -> tuple[dict[str, np.ndarray], Any]:
    """Every array by name, and the tree with names in place of its arrays."""
    tensors: dict[str, np.ndarray] = {}

    def add(name: str, array: Any, rows: bool = True) -> str:
        array = np.ascontiguousarray(array).reshape(np.shape(array))  # ascontiguousarray makes 0-d arrays 1-d
        if array.dtype.name not in _DTYPES:
            raise TypeError(f"{name}: arrays of {array.dtype} cannot be stored")
        if rows and array.shape[:1] != (n,):
            raise ValueError(f"{name}: shape {array.shape}, expected a leading axis of {n} rows")
        if name in tensors:
            raise ValueError(f"{name}: two arrays of this name")
        tensors[name] = array
        return name

    def walk(path: str, node: Any) -> Any:
        if node is None:
            return None
        if isinstance(node, Mapping):
            if not all(isinstance(key, str) for key in node):
                raise TypeError(f"{path}: dict keys must be strings")
            return {key: walk(f"{path}/{key}", value) for key, value in node.items()}
        if type(node) is list:
            return [walk(f"{path}/{i}", value) for i, value in enumerate(node)]
        if isinstance(node, tuple):
            raise TypeError(f"{path}: tuples do not come back as they were; use dicts and lists")
        return add(path, node)

    structure = walk("tree", tree)
    for metric, values in curves.items():
        if np.ndim(values) != 2:
            raise ValueError(f"curve {metric}: shape {np.shape(values)}, expected (rows, points)")
        add(f"curves/{metric}", values)
    if steps is not None:
        add("steps", steps, rows=False) if np.ndim(steps) == 1 else add("row_steps", steps)
    return tensors, structure


def _map_names(function: Callable[[str], np.ndarray], structure: Any) -> Any:
    if isinstance(structure, dict):
        return {key: _map_names(function, value) for key, value in structure.items()}
    if isinstance(structure, list):
        return [_map_names(function, value) for value in structure]
    return None if structure is None else function(structure)


def _curves_in(file: Any, rows_of: Callable[[str], np.ndarray]) -> tuple[np.ndarray | None, dict[str, np.ndarray]]:
    """`(steps, {metric: values})` of an open data file, where `rows_of` gives the wanted rows of a tensor by name."""
    names = sorted(file.keys())
    values = {name.removeprefix("curves/"): rows_of(name) for name in names if name.startswith("curves/")}
    if "steps" in names:
        return file.get_tensor("steps"), values
    return rows_of("row_steps") if "row_steps" in names else None, values


def _row_of(file: Any, name: str, index: int) -> np.ndarray:
    array = file.get_slice(name)[index : index + 1]
    return array.reshape(array.shape[1:])


def _data_error(path: epath.Path, error: Exception) -> StorageError:
    """safetensors reports the system's error as text only: `… I/O error: No space left on device (os error 28) …`."""
    number = str(error).partition("(os error ")[2].partition(")")[0]
    return storage_error(path, OSError(int(number), "") if number.isdigit() else error)
