"""The checkpoints of the batches that run: where they lie, and how a batch that was interrupted is met again."""

import contextlib
import hashlib
import json
from collections.abc import Callable
from typing import Any

import numpy as np
from etils import epath

from subl_jax import specs
from subl_jax.engine import lanes
from subl_jax.engine.checkpoint import Checkpoints, interrupted
from subl_jax.engine.plan import Group
from subl_jax.runtime import cluster
from subl_jax.storage.retrying import patiently

Tree = Any


def _folder(workdir: epath.Path) -> epath.Path:
    return workdir / "checkpoints"


def cut(
    workdir: epath.Path, group: Group, nodes: list[specs.Node], most: int, room: Callable[[int], int]
) -> list[list[specs.Node]]:
    """The nodes in batches of at most `most`: first those that were interrupted, as they were cut then.

    room: how many lanes a batch of so many nodes may have.
    """
    peers = cluster.peers()
    left, batches = {node.key: node for node in nodes}, []
    for meta in peers.first(interrupted(_folder(workdir)) if peers.leads else None):
        keys = meta["nodes"]
        can_hold = max(most, room(len(keys))) >= len(keys)
        if meta["form"] == group.form and left.keys() >= set(keys) and can_hold:
            batches.append([left.pop(key) for key in keys])
    rest = list(left.values())
    return batches + [rest[i : i + most] for i in range(0, len(rest), most)]


def remove_all(workdir: epath.Path) -> None:
    """What is left at the end of a sweep is of batches that came to be cut in another way after an interruption."""
    if cluster.peers().leads:
        patiently(lambda: _folder(workdir).rmtree(missing_ok=True))


class Saves:
    """The checkpoints of one batch. Opened only when there is one to read or to write: most batches have none."""

    def __init__(
        self,
        workdir: epath.Path,
        group: Group,
        nodes: list[specs.Node],
        program: lanes.Program,
        warn: Callable[[str], None],
    ) -> None:
        self._peers = cluster.peers()
        self._meta = {"form": group.form, "nodes": [node.key for node in nodes]}
        named = json.dumps(self._meta)
        self._directory = _folder(workdir) / hashlib.sha256(named.encode()).hexdigest()[:24]
        self._lanes = len(nodes)
        self._program = program
        self._warn = warn
        self._checkpoints: Checkpoints | None = None

    def restore(self) -> tuple[int, Tree, list[dict[str, np.ndarray]]] | None:
        """The steps taken, the state, and the records of the rounds so far, if there is a save."""
        if not self._peers.first(patiently(self._directory.exists)):
            return None
        sharding = self._program.sharding if self._peers.count > 1 else None
        restored = self._opened().restore(self._program.state, self._lanes, sharding)
        if restored is None:
            return None
        steps, state, records, _ = restored
        records = lanes.own_rows(records) if self._peers.count > 1 else records
        rounds = range(next(iter(records.values())).shape[1])
        return steps, state, [{name: values[:, i] for name, values in records.items()} for i in rounds]

    def save(self, steps: int, state: Tree, history: list[dict[str, np.ndarray]]) -> None:
        """Starts a save; the arrays may be given away on return. Raises StorageError."""
        records = {name: np.stack([record[name] for record in history], axis=1) for name in history[0]}
        if self._peers.count > 1:
            records = self._program.spread(records)
        self._opened().save(steps, state, records, self._meta)

    def close(self) -> None:
        """Whatever happens, no thread goes on writing."""
        if self._checkpoints is not None:
            self._checkpoints.close()

    def remove(self) -> None:
        """The batch is stored. What cannot be removed now is at the end of the sweep."""
        if self._checkpoints is not None and self._peers.leads:
            with contextlib.suppress(Exception):  # an object store's client raises errors of its own kind
                patiently(lambda: self._directory.rmtree(missing_ok=True))

    def _opened(self) -> Checkpoints:
        if self._checkpoints is None:
            self._checkpoints = Checkpoints(self._directory, warn=self._warn)
        return self._checkpoints
