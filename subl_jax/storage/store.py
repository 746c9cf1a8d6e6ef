"""Finished nodes by key: what a rerun, a killed run and a larger sweep reuse.

Lanes are stored as they were computed, a batch at a time (`shards.py`). Reading is in `reading.py`.
"""

import dataclasses
from collections.abc import Callable, Container, Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from etils import epath

from subl_jax.errors import StorageError
from subl_jax.storage.atomic import TEMPORARY
from subl_jax.storage.reading import Reader, exclusive
from subl_jax.storage.retrying import patiently
from subl_jax.storage.shards import STATUSES, Row, Shard, batch_id, packed
from subl_jax.storage.trees import curves_in, tensors_of
from subl_jax.storage.workdir import lock, open_workdir

__all__ = ["STATUSES", "Row", "Store", "batch_id", "lock", "open_workdir"]


class Store(Reader):
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
        super().__init__(workdir, warn, owner=not readonly and not shared)
        self._readonly = readonly
        self._shared = shared
        if entries is not None:
            for entry in entries:
                self.adopt(entry)
        elif not shared:
            for path in sorted(self._files.listing()):
                if path.suffix == ".json":
                    self._take_up(path)
            # On an object store another sweep may be between its data and its sidecar.
            if tidy and not readonly and self._files.is_local:
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
        tensors, structure = tensors_of(len(rows), None if bare else tree, curves or {}, steps)
        id = batch_id([row.key for row in rows])
        data = sha256 = None
        size = 0
        if tensors or tree is not None:
            data, sha256, size = self._files.write_data(id, tensors, structure)
        without = tuple(dataclasses.replace(row, spec=None) for row in rows)
        specs = specs or packed([row.spec for row in rows])
        shard = Shard(id, stage, without, data, sha256, size, specs, bare)
        if self.has_batch([row.key for row in rows]):
            self._files.remove(data)
            return self._index.shard(id).entry
        try:
            self._files.commit(shard)
        except StorageError:
            self._files.remove(data)
            raise
        self._replace(shard)
        return shard.entry

    @exclusive
    def _replace(self, shard: Shard) -> None:
        old = self._index.shard(shard.id)
        if old is not None:
            self._forget(old)
            self._files.remove(old.data)
        self._index.add(shard)
        self._checked.add(shard.id)

    # --- less of it ---

    @exclusive
    def strippable(self, keys: Container[str]) -> dict[str, int]:
        """The batches that hold arrays of none but these nodes: id → bytes of their data."""
        return {
            shard.id: shard.bytes
            for shard in self._index.shards()
            if shard.data is not None and not shard.bare and all(row.key in keys for row in shard.rows)
        }

    @exclusive
    def strip(self, id: str) -> dict[str, Any]:
        """Lets go of the arrays of a batch; rows and curves stay. Returns its entry. Raises as `get` and `put`."""
        shard = self._index.shard(id)
        with self._reading(shard) as file:
            steps, curves = curves_in(file, file.get_tensor)
        return self.put(shard.stage, shard.rows, None, curves, steps, bare=True, specs=shard.specs)

    @exclusive
    def strangers(self, keys: Container[str]) -> dict[str, int]:
        """The batches that hold none of these nodes: id → bytes of their data."""
        return {
            shard.id: shard.bytes for shard in self._index.shards() if not any(row.key in keys for row in shard.rows)
        }

    @exclusive
    def remove(self, id: str) -> None:
        """Removes a batch and all it holds."""
        shard = self._index.shard(id)
        self._forget(shard)
        self._files.remove(f"{id}.json")
        self._files.remove(shard.data)

    @exclusive
    def remove_leftovers(self) -> None:
        """Removes what killed writers left behind. No other writer may be at work."""
        paths = self._files.listing()
        self.find(path.stem for path in paths if path.suffix == ".json")
        used = {shard.data for shard in self._index.shards()}
        for path in paths:
            if TEMPORARY in path.name or (path.suffix == ".safetensors" and path.name not in used):
                self._files.remove(path.name)

    # --- several writers ---

    @exclusive
    def entries(self) -> list[dict[str, Any]]:
        """What is stored, as JSON, for the store of another process on the same directory."""
        return [shard.entry for shard in self._index.shards()]

    @exclusive
    def adopt(self, entry: dict[str, Any]) -> None:
        """Takes a shard that another process has put into the index."""
        shard = Shard.of(entry["id"], entry)
        old = self._index.shard(shard.id)
        if old != shard:
            if old is not None:
                self._forget(old)
            self._index.add(shard)

    @exclusive
    def find(self, ids: Iterable[str]) -> bool:
        """Takes up batches that other writers have put, by their ids. Whether all of them are there."""
        there = True
        for id in ids:
            path = self._files.sidecar(id)
            if self._index.shard(id) is None and patiently(path.exists):
                self._take_up(path)
            there &= self._index.shard(id) is not None
        return there

    def has_batch(self, keys: Sequence[str]) -> bool:
        """Whether another writer has put these very nodes as a batch; never where this store is the only writer."""
        return self._shared and self.find([batch_id(keys)])
