"""What a batch of lanes has measured so far, and what becomes of it."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from subl_jax import specs
from subl_jax.engine import nodes as asked
from subl_jax.engine.plan import Group
from subl_jax.storage.store import Row

Tree = Any
Record = dict[str, np.ndarray]  # one round of a batch, each (lanes, …)


class Results(NamedTuple):
    """What is stored of a batch; all arrays have a leading axis of rows."""

    rows: list[Row]
    tree: Tree
    curves: dict[str, np.ndarray] | None
    steps: np.ndarray | None


class Records:
    """The rounds of a batch, of this process's own lanes: points of curves, or samples.

    own: the nodes of these lanes; none where a process has padding alone.
    """

    def __init__(self, group: Group, own: Sequence[specs.Node]) -> None:
        self._world = group.nodes[0].world
        self._own = own
        self._reached_by = group.stage.reached
        self._finite = group.stage.finite
        self._reached = np.zeros(len(own), bool)  # the lanes that stay as they are
        self._delivered = 0
        self.collects = asked.collects(group.nodes[0])
        self.collectors = [asked.collector(node) for node in own] if self.collects else []
        self.history: list[Record] = []

    def take(self, record: Record) -> None:
        """One round, in order."""
        self.history.append(record)
        if self._reached_by is not None:
            self._reached |= self._reached_by(self._own, record)
        for collector, samples in zip(self.collectors, record.get("samples", ()), strict=False):
            collector.add(samples)

    def restored(self, history: Sequence[Record]) -> None:
        """The rounds of an earlier run, which were tracked when they were computed."""
        for record in history:
            self.take(record)
        self._delivered = len(self.history)

    @property
    def enough(self) -> bool:
        """Whether every dataset has its samples."""
        return all(collector.enough for collector in self.collectors)

    @property
    def kept(self) -> int:
        """Samples so far."""
        return sum(collector.kept for collector in self.collectors)

    @property
    def all_reached(self) -> bool:
        """Whether every lane has its target, where lanes have one."""
        return self._reached_by is not None and bool(self._reached.all())

    @property
    def any_reached(self) -> bool:
        return bool(self._reached.any())

    def news(self) -> tuple[int, list[Record]]:
        """The rounds since the last time, without padding, and how many were before them."""
        before, self._delivered = self._delivered, len(self.history)
        count = len(self._own)
        return before, [{name: values[:count] for name, values in each.items()} for each in self.history[before:]]

    def spared(self, all_steps: int, begun: int) -> int:
        """Steps that were not needed, as lanes had reached their target. begun: those of an earlier run."""
        if self._reached_by is None:
            return 0
        taken = self.history[-1]["steps_taken"][: len(self._own)].astype(int)
        return int((all_steps - np.maximum(taken, begun)).sum())

    def of_models(self, tree: Tree, rounds: Sequence[int]) -> Results:
        """tree: the parameters of the lanes; rounds: the steps of each."""
        count = len(self._own)
        stacked = {name: np.stack([r[name][:count] for r in self.history], axis=1) for name in self.history[0]}
        curves, steps = named_metrics(self._world, stacked), np.cumsum(rounds)
        rows = []
        for lane, node in enumerate(self._own):
            why = (
                _lost_in_loss(curves["loss"][lane], steps) or (self._finite and _lost_in_parameters(lane, tree)) or None
            )
            rows.append(Row(node.key, specs.to_json(node), "diverged" if why else "ok", why))
        return Results(rows, tree, curves, steps)

    def of_datasets(self) -> Results:
        """What the collectors have kept."""
        tree = jax.tree.map(lambda *leaves: np.stack(leaves), *[each.artefact() for each in self.collectors])
        rows = []
        for lane, (node, collector) in enumerate(zip(self._own, self.collectors, strict=True)):
            status, why = "failed", collector.shortfall()
            if not why:
                why = _lost_in_parameters(lane, tree)
                status = "diverged" if why else "ok"
            rows.append(Row(node.key, specs.to_json(node), status, why, collector.info()))
        return Results(rows, tree, None, None)


def named_metrics(world: specs.World, record: Record) -> Record:
    """A record with one entry per number: `trait` of shape (…, traits) becomes `trait/<name>` of shape (…) each."""
    named: Record = {}
    for metric, values in record.items():
        names = world.labels.get(metric)
        if names is None:
            named[metric] = values
        else:
            named.update({f"{metric}/{name}": values[..., i] for i, name in enumerate(names)})
    return named


def _lost_in_loss(loss: np.ndarray, steps: np.ndarray) -> str | None:
    """When a lane's loss stopped to be a finite number. Before the first step there may be none."""
    lost = ~np.isfinite(loss) & (steps > 0)
    return f"its loss is not a finite number from step {int(steps[lost.argmax()])} on" if lost.any() else None


def _lost_in_parameters(lane: int, tree: Tree) -> str | None:
    floats = [leaf[lane] for leaf in jax.tree.leaves(tree) if np.issubdtype(leaf.dtype, np.floating)]
    whole = all(np.isfinite(leaf).all() for leaf in floats)
    return None if whole else "its parameters are not all finite numbers"
