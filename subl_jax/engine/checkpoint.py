"""Checkpoints of a batch of lanes that is still running. The only file that imports orbax.

    <directory>/saves/<id>/         one save, written by orbax in the background and shown once it is whole
    <directory>/seals/<id>.json     its steps, its meta, and the shape, dtype and hash of what it holds

The seal is written just before the save is shown, so every save has one. It is there because orbax casts to a dtype
that differs from the saved one without a word, and does not notice a flipped bit in the arrays.
"""

import contextlib
import functools
import json
import logging
import os
import re
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
from etils import epath
from orbax.checkpoint import checkpoint_managers

from subl_jax.errors import OutOfMemory, StorageError
from subl_jax.runtime import cluster, memory
from subl_jax.storage.atomic import is_local, storage_error, write_json_atomic
from subl_jax.storage.jsonl import file_sha256
from subl_jax.storage.retrying import passes, patiently

# Why a save was not read.
_DAMAGED, _FULL, _UNREACHED = "1 damaged", "2 full", "3 unreached"
# What tensorstore, which reads arrays for orbax, says of storage in errors that are ValueErrors.
_OF_STORAGE = re.compile(
    r"\b(UNAVAILABLE|PERMISSION_DENIED|UNAUTHENTICATED|DEADLINE_EXCEEDED|RESOURCE_EXHAUSTED|ABORTED)\b"
)
_KEPT = 2


class Checkpoints:
    """The saves of one running batch.

    Saves are numbered 0, 1, 2, … whatever their steps: orbax's preemption handling needs consecutive numbers.
    In a program of several processes every method is called by all of them, on shared storage.

    Args:
      directory: used for this batch alone; made where it is missing.
      warn: gets one line for each save that cannot be used.

    Raises:
      StorageError: the directory cannot be made.
    """

    def __init__(self, directory: epath.PathLike, warn: Callable[[str], None] = print) -> None:
        _silence()
        # orbax takes absolute paths only.
        self._directory = epath.Path(os.path.abspath(directory) if is_local(directory) else directory)
        self._warn = warn
        self._seal: dict[str, Any] = {}  # of the save that is being written
        # What a killed process left of a save is replaced by the save of the same number. orbax's own clean-up, in the
        # background, would race with it.
        self._manager = self._guarded(
            ocp.CheckpointManager,
            self._directory / "saves",
            options=ocp.CheckpointManagerOptions(
                save_decision_policy=checkpoint_managers.FixedIntervalPolicy(1),
                preservation_policy=checkpoint_managers.LatestN(_KEPT),
                async_options=ocp.AsyncOptions(post_finalization_callback=self._write_seal),
            ),
        )

    def save(self, steps: int, state: Any, records: Any, meta: dict[str, Any]) -> None:
        """Starts to save, once the save before it is done; the arrays may be donated or changed on return.

        Args:
          steps: how many `state` has behind it.
          state: pytree of jax or numpy arrays.
          records: dicts and lists of arrays: numpy arrays, or in several processes arrays sharded like the state.
          meta: JSON.

        Raises:
          StorageError: this save or the one before it failed; older ones are untouched.
        """
        self.wait()
        latest = self._manager.latest_step()
        leaves, skeleton = _skeleton(records)
        self._seal = {
            "id": 0 if latest is None else latest + 1,
            "steps": steps,
            "meta": meta,
            "state": _layout(state),
            "records": skeleton,
            "arrays": [[leaf.dtype.name, leaf.shape] for leaf in leaves],
        }
        arrays = {**_named("state", jax.tree.leaves(state)), **_named("records", leaves)}
        self._guarded(self._manager.save, self._seal["id"], args=ocp.args.StandardSave(arrays), force=True)

    def restore(
        self, abstract_state: Any, rows: int | None = None, sharding: jax.sharding.Sharding | None = None
    ) -> tuple[int, Any, Any, dict[str, Any]] | None:
        """`(steps, state, records, meta)` of the newest save that is whole and fits; None when there is none.

        Saves that cannot be used are removed.

        Args:
          abstract_state: the state as `jax.ShapeDtypeStruct` leaves. A leaf without a sharding goes to the first
            device; the devices need not be those that saved.
          rows: how many rows of the leading axis of all arrays, state and records, mean something. The others may be
            missing or be more than there are in the save: they are copies of the first. None: all.
          sharding: of the records; without it they are numpy arrays.

        Raises:
          OutOfMemory: a process has no room for it; it stays.
          StorageError: the storage does not answer; it stays.
        """
        self.wait()
        peers = cluster.peers()
        for id in peers.first(sorted(self._manager.all_steps(), reverse=True)):
            trouble, seal, restored = None, None, None
            try:
                # One process reads the whole save for its checksums; the others read their own part.
                with memory.noticed():
                    read_seal = functools.partial(self._read_seal, id, abstract_state, rows)
                    seal = patiently(read_seal) if peers.leads else None
            except Exception as error:
                trouble = self._trouble(error)
            trouble, seal = peers.first([trouble, seal])
            if trouble is None:
                try:
                    with memory.noticed():
                        restored = patiently(functools.partial(self._restore, id, seal, abstract_state, sharding))
                except Exception as error:  # a damaged file can fail anywhere in orbax
                    trouble = self._trouble(error)
                trouble = max((each for each in peers.gather(trouble) if each is not None), default=None)
            if trouble is None:
                return restored
            kind, reason = trouble
            if kind != _DAMAGED:
                raise (OutOfMemory if kind == _FULL else StorageError)(reason)
            self._warn(f"checkpoint {self._directory / 'saves' / str(id)} cannot be used and is removed: {reason}")
            self._manager.delete(id)
        return None

    def _trouble(self, error: Exception) -> list[str]:
        """[kind, line] of what a save was not read for. Of several processes' the last in order counts."""
        if isinstance(error, OutOfMemory):
            return [_FULL, str(error)]
        missing = isinstance(error, FileNotFoundError | NotADirectoryError | IsADirectoryError)
        if passes(error) or (isinstance(error, OSError) and not missing) or _OF_STORAGE.search(str(error)):
            return [_UNREACHED, str(storage_error(self._directory, error, "read"))]
        return [_DAMAGED, _reason(error)]

    def wait(self) -> None:
        """Returns when the last save is on the disk. Raises StorageError when it failed."""
        self._guarded(self._manager.wait_until_finished)

    def close(self) -> None:
        """Ends the last save and the background threads. Raises StorageError when that save failed."""
        try:
            self.wait()
        finally:
            self._manager.close()

    def _read_seal(self, id: int, abstract_state: Any, rows: int | None) -> dict[str, Any]:
        """The seal of a save that is whole and fits. Raises anything where it is not."""
        seal = json.loads(self._seal_path(id).read_bytes())
        if "steps" not in seal:
            raise ValueError("it is of an earlier version, or damaged")
        if _hashes(self._directory / "saves" / str(id)) != seal["files"]:
            raise ValueError("it is damaged (checksum differs)")
        needed = _layout(abstract_state)
        if len(seal["state"]) != len(needed):
            raise ValueError(f"it holds {len(seal['state'])} arrays, and this run needs {len(needed)}")
        for saved, wanted in zip(seal["state"], needed, strict=True):
            if saved != wanted and not _same_rows(saved, wanted, rows):
                raise ValueError(f"it holds {_text(saved)}, and this run needs {_text(wanted)}")
        return seal

    def _restore(
        self, id: int, seal: dict[str, Any], abstract_state: Any, sharding: jax.sharding.Sharding | None
    ) -> tuple[int, Any, Any, dict[str, Any]]:
        abstract, structure = jax.tree.flatten(abstract_state)
        device = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
        shapes = [shape for _, _, shape in seal["state"]]
        # What has as many rows as are wanted is read by each process in parts; else each reads all of it.
        cut = shapes != [list(leaf.shape) for leaf in abstract]
        state: list[Any] = [
            np.empty(shape, leaf.dtype)
            if cut
            else jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=getattr(leaf, "sharding", None) or device)
            for shape, leaf in zip(shapes, abstract, strict=True)
        ]
        records: list[Any] = [
            np.empty(shape, jnp.dtype(dtype))
            if cut or sharding is None
            else jax.ShapeDtypeStruct(shape, jnp.dtype(dtype), sharding=sharding)
            for dtype, shape in seal["arrays"]
        ]
        target = {**_named("state", state), **_named("records", records)}
        # Not through the manager: it ends in a barrier on the devices, at which the other processes would wait for ever
        # for one that could not read.
        path = self._directory / "saves" / str(id) / ocp.checkpoint_manager.DEFAULT_ITEM_NAME
        restored = ocp.StandardCheckpointHandler().restore(path, args=ocp.args.StandardRestore(target))
        state = [
            _placed(restored.get(name, leaf), wanted.shape, getattr(wanted, "sharding", None) or device)
            for (name, leaf), wanted in zip(_numbered("state", state), abstract, strict=True)
        ]
        lanes = abstract[0].shape[:1]
        records = [
            _placed(restored.get(name, leaf), (*lanes, *leaf.shape[1:]) if cut else leaf.shape, sharding)
            for name, leaf in _numbered("records", records)
        ]
        return (
            seal["steps"],
            jax.tree.unflatten(structure, state),
            jax.tree.map(lambda index: records[index], seal["records"]),
            seal["meta"],
        )

    def _write_seal(self) -> None:
        """Called by orbax in its background thread, on the first process, when all but the last rename is done."""
        id = self._seal["id"]
        (path,) = (path for path in (self._directory / "saves").iterdir() if path.name.split(".")[0] == str(id))
        write_json_atomic(self._seal_path(id), {**self._seal, "files": _hashes(path)})

    def _seal_path(self, id: int) -> epath.Path:
        return self._directory / "seals" / f"{id}.json"

    def _guarded(self, function: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        try:
            return function(*args, **kwargs)
        except StorageError:  # of the seal
            raise
        except Exception as error:  # a full disk reaches us as an error of orbax's storage layer, of any type
            raise storage_error(self._directory, error) from error


def _numbered(kind: str, leaves: list[Any]) -> list[tuple[str, Any]]:
    return [(f"{kind}_{i:04d}", leaf) for i, leaf in enumerate(leaves)]


def _named(kind: str, leaves: list[Any]) -> dict[str, Any]:
    """Leaves by number, without those that hold nothing: orbax refuses to save an array of size zero."""
    return {name: leaf for name, leaf in _numbered(kind, leaves) if leaf.size}


def _layout(state: Any) -> list[list[Any]]:
    """[path, dtype, shape] of every leaf, as JSON gives it back."""
    leaves = jax.tree_util.tree_leaves_with_path(state)
    return [[jax.tree_util.keystr(path), jnp.dtype(leaf.dtype).name, list(leaf.shape)] for path, leaf in leaves]


def _skeleton(records: Any) -> tuple[list[np.ndarray], Any]:
    """The arrays, and the tree with their indices in their places."""
    leaves, structure = jax.tree.flatten(records)
    arrays = [leaf if isinstance(leaf, jax.Array) else np.asarray(leaf) for leaf in leaves]
    return arrays, jax.tree.unflatten(structure, range(len(leaves)))


def _same_rows(saved: list[Any], wanted: list[Any], rows: int | None) -> bool:
    """Whether two leaves differ in nothing but the length of their leading axis, and both have `rows` rows."""
    (path, dtype, shape), (other_path, other_dtype, other) = saved, wanted
    same = (path, dtype, shape[1:]) == (other_path, other_dtype, other[1:])
    return same and rows is not None and min(len(shape), len(other)) > 0 and min(shape[0], other[0]) >= rows


def _placed(array: Any, shape: tuple[int, ...], sharding: jax.sharding.Sharding | None) -> Any:
    """What was read, on the devices (where there is a sharding) and with as many rows as are wanted."""
    if isinstance(array, jax.ShapeDtypeStruct):  # of size zero, and so not saved
        array = np.zeros(array.shape, array.dtype)
    if isinstance(array, jax.Array):
        return array
    missing = shape[0] - len(array) if shape and shape != array.shape else 0
    if missing > 0:
        array = np.concatenate([array, np.repeat(array[:1], missing, axis=0)])
    array = array[: shape[0]] if missing < 0 else array
    if sharding is None:
        return array
    return jax.make_array_from_callback(array.shape, sharding, lambda index: array[index])


def interrupted(directory: epath.PathLike) -> list[dict[str, Any]]:
    """The meta of every batch that has a save in one of the folders of `directory`."""
    metas = []
    for folder in patiently(lambda: sorted(epath.Path(directory).glob("*"))):
        seals = patiently(lambda folder=folder: sorted((folder / "seals").glob("*.json")))
        with contextlib.suppress(OSError, ValueError, KeyError):  # damaged: it is met, and told, when it is restored
            metas += [json.loads(path.read_bytes())["meta"] for path in seals[-1:]]
    return metas


def _reason(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0][:200]


def _text(leaf: list[Any]) -> str:
    path, dtype, shape = leaf
    return f"{path or 'a state'} as {dtype}{shape}"


def _hashes(save: epath.Path) -> dict[str, str]:
    """SHA-256 of each file of a save, but for those that orbax adds or changes when it shows the save."""
    hashes = {}

    def walk(directory: epath.Path) -> None:
        for path in directory.iterdir():
            if path.is_dir():
                walk(path)
            elif path.name not in ("commit_success.txt", "_CHECKPOINT_METADATA"):
                hashes[str(path.relative_to(save))] = file_sha256(path)

    walk(save)
    return hashes


def _silence() -> None:
    """Drops orbax's log: it tells of every step of every save, and what goes wrong is raised as well."""
    logger = logging.getLogger("absl")
    if _not_of_orbax not in logger.filters:
        logger.addFilter(_not_of_orbax)


def _not_of_orbax(record: logging.LogRecord) -> bool:
    return "orbax" not in record.pathname
