"""Computes sweeps of the tiny world, and compares what they left."""

import dataclasses
import io

import numpy as np
from etils import epath
from rich.console import Console
from tiny_world import TRAIN

from subl_jax import specs
from subl_jax.engine import lanes
from subl_jax.engine.observers import NoTracker
from subl_jax.engine.plan import plan_of
from subl_jax.engine.runner import Engine
from subl_jax.engine.settings import Settings
from subl_jax.storage.store import Store
from subl_jax.tracking.terminal import Progress

ALONE = {"devices": 1, "lanes_a_batch": 1}
DEFAULT = {"width": 0}  # what the engine chooses for this machine
LONG = TRAIN.replace(steps=12, evals=6)


@dataclasses.dataclass
class Done:
    """What one call of the engine left behind."""

    timings: list
    store: Store
    text: str
    workdir: epath.Path

    @property
    def computed(self):
        """Stage → lanes that were computed."""
        counts = {}
        for timing in self.timings:
            counts[timing.stage] = counts.get(timing.stage, 0) + timing.lanes
        return counts

    def statuses(self, nodes):
        return [self.store.status(node.key) for node in nodes]


def compute(students, workdir, tracker=None, preempted=lambda: False, **settings):
    output = io.StringIO()
    progress = Progress(Console(file=output, width=400))
    store = Store(workdir, warn=progress.warn)
    settings = Settings(**{"tracker": "none", "measure_layout": False, **(settings or ALONE)})
    plan = plan_of(list(students), store)
    engine = Engine(epath.Path(workdir), "a sweep", store, settings, tracker or NoTracker(), progress, preempted)
    return Done(engine.compute(plan), store, output.getvalue(), epath.Path(workdir))


def curves(store, node):
    return store.curves(node.key)[1]


def same(one, other, nodes, **tolerance):
    """Whether two stores hold the same curves and arrays for `nodes`; equal to the bit without a tolerance."""
    for node in nodes:
        assert one.status(node.key) == other.status(node.key)
        np.testing.assert_array_equal(one.curves(node.key)[0], other.curves(node.key)[0])
        pairs = [(curves(one, node), curves(other, node))]
        trees = one.get(node.key), other.get(node.key)
        if trees[0] is not None:
            pairs += [(_flat(trees[0]), _flat(trees[1]))]
        for a, b in pairs:
            assert a.keys() == b.keys()
            for name in a:
                np.testing.assert_allclose(a[name], b[name], **{"rtol": 0, **tolerance}, err_msg=name)


def _flat(tree, prefix=""):
    flat = {}
    for name, value in tree.items():
        flat.update(_flat(value, f"{prefix}{name}/") if isinstance(value, dict) else {prefix + name: value})
    return flat


def lineage(students):
    """Every node behind the students, once."""
    nodes = {}

    def walk(value):
        if isinstance(value, specs.Node) and not isinstance(value, specs.Imported):
            nodes[value.key] = value
        if isinstance(value, specs.Spec):
            for name in specs.roles(type(value)):
                walk(getattr(value, name))

    for student in students:
        walk(student)
    return list(nodes.values())


class After:
    """A notice that comes at the n-th time it is asked for."""

    def __init__(self, n):
        self.n, self.asked = n, 0

    def __call__(self):
        self.asked += 1
        return self.asked > self.n


def rounds_run(monkeypatch):
    rounds, advance = [], lanes.Program.advance

    def counted(program, arguments, state, steps, measure):
        rounds.append(steps)
        return advance(program, arguments, state, steps, measure)

    monkeypatch.setattr(lanes.Program, "advance", counted)
    return rounds


class FakeTracker:
    """Remembers what it is told."""

    def __init__(self, delivered=()):
        self.runs, self.points, self.finished, self._delivered = {}, {}, {}, set(delivered)
        self.tables, self.images = {}, {}

    def start(self, run):
        self.runs[run.run_id] = run

    def log(self, run_id, steps, metrics):
        for i, step in enumerate(steps):
            self.points.setdefault(run_id, []).append((step, {name: float(v[i]) for name, v in metrics.items()}))

    def show(self, run_id, tables, images):
        self.tables.update(tables)
        self.images.update(images)

    def finish(self, run_id, summary, exit_code=0):
        assert run_id not in self.finished
        self.finished[run_id] = (summary, exit_code)
        self._delivered.add(run_id)

    def delivered(self):
        return frozenset(self._delivered)

    def close(self):
        return []
