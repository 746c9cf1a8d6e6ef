"""What a batch is computed from: rows of the nodes behind it, and their artefacts on the devices."""

from collections.abc import Sequence
from typing import Any

import jax
import numpy as np

from subl_jax import specs
from subl_jax.channels.imported import read_imported
from subl_jax.engine import lanes
from subl_jax.engine import nodes as asked
from subl_jax.engine.plan import Group
from subl_jax.engine.writer import WriteBehind
from subl_jax.storage.store import Row, Store

Tree = Any


class Inputs:
    """Reads what nodes build on from the store."""

    def __init__(self, store: Store, behind: WriteBehind) -> None:
        self._store = store
        self._behind = behind

    def split(self, group: Group) -> tuple[list[specs.Node], dict[str, Row]]:
        """The nodes whose inputs are all ok; for the others, by key, rows that say why they cannot be computed."""
        alive: list[specs.Node] = []
        lost: dict[str, Row] = {}
        for node in group.nodes:
            parents = [parent for parent in node.inputs().values() if parent.stage]
            bad = next((parent for parent in parents if self._behind.row(parent.key).status != "ok"), None)
            if bad is None:
                alive.append(node)
            else:
                row = self._behind.row(bad.key)
                why = f"its {asked.name(bad)} {row.status}: {row.why}"
                lost[node.key] = Row(node.key, specs.to_json(node), "failed", why)
        return alive, lost

    def await_stored(self, nodes: Sequence[specs.Node]) -> None:
        """Has what `nodes` are computed from stored. All processes call it together."""
        if any(self._behind.is_fresh(parent.key) for node in nodes for parent in node.inputs().values()):
            self._behind.settle()

    def arguments(self, batch: list[specs.Node], program: lanes.Program) -> Tree:
        """Keys, traced values and inputs of a batch on the devices. Each process reads what its own lanes need."""
        nodes = batch[program.own] or batch[:1]
        artefacts = [{name: self._artefact(parent) for name, parent in node.inputs().items()} for node in nodes]
        stacked = jax.tree.map(lambda *leaves: np.stack(leaves), *artefacts)
        return program.put(np.stack([lanes.lane_key(node) for node in nodes]), lanes.lane_values(nodes), stacked)

    def _artefact(self, node: specs.Node) -> Tree:
        return self._store.get(node.key) if node.stage else read_imported(node)
