"""Reading finished nodes: rows, specs, arrays, curves; and whether their data is whole."""

import contextlib
import copy
import functools
import json
import threading
import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import numpy as np
from etils import epath

from subl_jax.errors import StorageError
from subl_jax.storage import datasets
from subl_jax.storage.index import Index
from subl_jax.storage.shards import Row, Shard, ShardFiles, Unusable, unpacked
from subl_jax.storage.trees import curves_in, map_names, row_of


def exclusive(method: Callable[..., Any]) -> Callable[..., Any]:
    """One thread at a time: a batch may be written while another thread reads."""

    @functools.wraps(method)
    def held(self: "Reader", *args: Any, **kwargs: Any) -> Any:
        with self._mutex:
            return method(self, *args, **kwargs)

    return held


class Reader:
    """The reading half of `Store`.

    owner: damaged shards are removed, and lines of datasets mended.
    """

    def __init__(self, workdir: epath.PathLike, warn: Callable[[str], None], owner: bool) -> None:
        self._mutex = threading.RLock()
        self._workdir = epath.Path(workdir)
        self._files = ShardFiles(self._workdir / "artifacts")
        self._index = Index()
        self._checked: set[str] = set()  # shards whose data this process has hashed
        self._warn = warn
        self._owner = owner

    @exclusive
    def done(self) -> dict[str, str]:
        """Key → status of every stored node."""
        return {key: self.status(key) for key in self._index}

    @exclusive
    def bare(self) -> set[str]:
        """The keys of nodes whose arrays were let go."""
        return {key for key in self._index if self._index.place(key)[0].bare}

    @exclusive
    def spec(self, key: str) -> dict[str, Any]:
        """The spec of a node, in its JSON form.

        Raises:
          KeyError: the node is not stored.
          StorageError: its sidecar is damaged.
        """
        shard, index = self._index.place(key)
        try:
            return copy.deepcopy(unpacked(shard.specs)[index])
        except (ValueError, IndexError, zlib.error) as error:
            raise StorageError(
                f"artifacts/{shard.id}.json is damaged: its specs cannot be read ({error}); remove it and run the same "
                "command again to compute its nodes again"
            ) from error

    @exclusive
    def stage(self, key: str) -> str:
        """The stage that computed a node. Raises KeyError when it is not stored."""
        return self._index.place(key)[0].stage

    @exclusive
    def row(self, key: str) -> Row:
        """A node without its arrays. Raises KeyError when it is not stored."""
        return self._index.row(key)

    def status(self, key: str) -> str:
        """`ok`, `diverged` or `failed`. Raises KeyError when the node is not stored."""
        return self.row(key).status

    @exclusive
    def batches(self, keys: Iterable[str]) -> set[str]:
        """The ids of the batches that hold these nodes. Raises KeyError when one is not stored."""
        return {self._index.place(key)[0].id for key in keys}

    @exclusive
    def get(self, key: str) -> Any:
        """The arrays of one node, as they were put but without the leading axis; None when it has none.

        Raises:
          KeyError: the node is not stored.
          StorageError: its shard turned out to be damaged, and is forgotten.
        """
        shard, index = self._index.place(key)
        if shard.data is None:
            return None
        with self._reading(shard) as file:
            structure = json.loads(file.metadata()["tree"])
            return map_names(lambda name: row_of(file, name, index), structure)

    @exclusive
    def curves(self, key: str) -> tuple[np.ndarray, dict[str, np.ndarray]]:
        """`(steps, {metric: values})`, each (points,); empty where a node has no curves. Raises as `get`."""
        shard, index = self._index.place(key)
        if shard.data is None:
            return np.zeros(0, int), {}
        with self._reading(shard) as file:
            steps, values = curves_in(file, lambda name: row_of(file, name, index))
        return np.zeros(0, int) if steps is None else steps, values

    def many_curves(self, keys: Sequence[str]) -> Iterator[tuple[np.ndarray, np.ndarray, dict[str, np.ndarray]]]:
        """The curves of many nodes, a batch at a time: `(which, steps, {metric: values})`. Raises as `get`.

        which: (rows,) int, places in `keys`; every node that has curves comes in one batch.
        steps: (points,) or (rows, points); values: (rows, points).
        """
        places: dict[str, list[tuple[int, int]]] = {}
        with self._mutex:
            for i, key in enumerate(keys):
                shard, index = self._index.place(key)
                if shard.data is not None:
                    places.setdefault(shard.id, []).append((i, index))
        for id, pairs in places.items():
            which, rows = np.array(pairs).T
            with self._mutex, self._reading(self._index.shard(id)) as file:
                steps, values = curves_in(file, lambda name, file=file, rows=rows: file.get_tensor(name)[rows])
            if values:
                yield which, steps, values

    @exclusive
    def verify(self, keys: Iterable[str]) -> set[str]:
        """The keys, of those given, that are stored and whose data is whole; damaged shards are forgotten."""
        keys = list(keys)
        # A key whose shard was forgotten may be in another one.
        while unchecked := self._index.ids(keys) - self._checked:
            for id in unchecked:
                self._check(self._index.shard(id))
        return {key for key in keys if key in self._index}

    def verify_files(self, keys: Iterable[str]) -> bool:
        """Whether the files that people read of these datasets are whole (`datasets.py`).

        Lines are written again from the table beside them. Without its table a dataset is forgotten with its batch, as
        if its data were damaged, so that it is computed again.
        """
        infos = {key: self.row(key).info for key in keys if "drawn" in self.row(key).info}
        whole = True
        for damage in datasets.damaged(self._workdir, infos):
            if damage.table_is_whole:
                self._warn(f"{damage.file} is damaged ({damage.why}): it is written again from the table beside it")
                if self._owner:
                    datasets.mend(self._workdir, damage.key)
            else:
                whole = False
                self._give_up(damage.key, f"{damage.file} is damaged ({damage.why})")
        return whole

    @exclusive
    def _give_up(self, key: str, why: str) -> None:
        if key in self._index:  # its batch may be given up already
            self._damaged(self._index.place(key)[0], why)

    # --- shards ---

    def _take_up(self, sidecar: epath.Path) -> None:
        """Puts a shard that lies there into the index."""
        try:
            self._index.add(self._files.read(sidecar))
        except Unusable as error:
            self._warn(f"artifacts/{sidecar.name} {error}")
            if error.damaged and self._owner:
                self._files.remove(sidecar.name)

    def _forget(self, shard: Shard) -> None:
        self._index.drop(shard)
        self._checked.discard(shard.id)
        self._files.close(shard)

    @contextlib.contextmanager
    def _reading(self, shard: Shard) -> Iterator[Any]:
        """The open data file of a shard, checked before its first use."""
        if not self._check(shard):
            raise StorageError(f"artifacts/{shard.data} is damaged; run the same command again to compute it again")
        with self._files.reading(shard) as file:
            yield file

    def _check(self, shard: Shard) -> bool:
        """Whether the data file is what the sidecar says, looked at once; if not, the shard is forgotten."""
        if shard.id not in self._checked:
            damage = self._files.damage(shard)
            if damage:
                self._damaged(shard, f"artifacts/{shard.data} is damaged ({damage})")
                return False
            self._checked.add(shard.id)
        return True

    def _damaged(self, shard: Shard, why: str) -> None:
        """Forgets a shard, so that it is computed again."""
        count = f"its {len(shard.rows)} {shard.stage} results" if len(shard.rows) > 1 else f"its {shard.stage} result"
        self._warn(f"{why}: {count} will be computed again")
        self._forget(shard)
        if self._owner:
            self._files.remove(f"{shard.id}.json")
            self._files.remove(shard.data)
