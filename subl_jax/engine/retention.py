"""Which parameters may go, and when (`Settings.keep`)."""

import collections
from collections.abc import Sequence
from typing import Any

from subl_jax import specs
from subl_jax.engine import nodes as asked
from subl_jax.engine.plan import Plan
from subl_jax.engine.writer import WriteBehind
from subl_jax.runtime import cluster
from subl_jax.storage.store import Store


def droppable(plan: Plan, keep: str) -> set[str]:
    """Keys of the models of a plan whose parameters may go when no node is left to compute from them."""
    if keep == "all":
        return set()
    nodes = {**plan.reused, **{node.key: node for group in plan.groups for node in group.nodes}}
    models = {key for key, node in nodes.items() if asked.is_model(node)}
    if keep == "curves":
        return models
    return models - {parent.key for node in nodes.values() for parent in node.inputs().values()}


def awaited(plan: Plan) -> "collections.Counter[str]":
    """By key, how many nodes are still to be computed from each node."""
    parents = (node.inputs().values() for group in plan.groups for node in group.nodes)
    return collections.Counter(parent.key for of_node in parents for parent in of_node)


class Retention:
    """Lets parameters go as soon as nothing is left to compute from them. All processes call every method."""

    def __init__(self, store: Store, behind: WriteBehind) -> None:
        self._peers = cluster.peers()
        self._store = store
        self._behind = behind
        self._droppable: set[str] = set()
        self._left: collections.Counter[str] = collections.Counter()

    def expect(self, plan: Plan, keep: str) -> None:
        """From here on, it is about this plan."""
        self._droppable = droppable(plan, keep)
        self._left = awaited(plan)

    def drops(self, node: specs.Node) -> bool:
        """Whether the parameters need not be stored in the first place."""
        return self._may_go(node.key)

    def done(self, nodes: Sequence[specs.Node]) -> None:
        """`nodes` are computed: removes what nothing is computed from any more."""
        self._left.subtract(parent.key for node in nodes for parent in node.inputs().values())
        if not self._droppable:
            return

        def strip() -> list[dict[str, Any]]:
            # A batch that is still being written is stripped the next time.
            gone = {key for key in self._droppable if self._may_go(key) and not self._behind.is_fresh(key)}
            return [self._store.strip(id) for id in self._store.strippable(gone)]

        for entry in self._peers.first(self._peers.together(lambda: strip() if self._peers.leads else [])):
            self._store.adopt(entry)

    def _may_go(self, key: str) -> bool:
        return key in self._droppable and self._left[key] <= 0
