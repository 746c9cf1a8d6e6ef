"""What the trackers are given of the students: a run each."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from subl_jax import specs
from subl_jax.engine.observers import RunInfo, Tracker
from subl_jax.specs.metrics import TARGET, tracked
from subl_jax.storage.store import Store


class Delivery:
    """Gives each student's curve to the tracker once, whether it is computed now, elsewhere, or was stored before.

    The same node may be several students, which differ in their labels. The leading process delivers, for all.
    """

    def __init__(self, tracker: Tracker, sweep: str, store: Store) -> None:
        self._tracker = tracker
        self._sweep = sweep
        self._store = store
        self._students: dict[str, list[specs.Student]] = {}  # by the key of their node
        self._traits: dict[str, dict[str, None]] = {}  # that are followed in a world, by its key
        self._chances: dict[str, Mapping[str, float]] = {}

    def expect(self, students: Sequence[specs.Student]) -> None:
        """From here on, these are tracked."""
        for student in students:
            self._students.setdefault(student.key, []).append(student)
            world, trait = student.world, specs.trait_of(student)
            if trait is not None:
                self._traits.setdefault(world.key, {})[trait] = None
            if world.key not in self._chances:
                self._chances[world.key] = world.base_rates

    def watched(self, nodes: Sequence[specs.Node]) -> bool:
        """Whether one of the nodes is a student to be tracked, in whatever process."""
        return any(node.key in self._students for node in nodes)

    def start(self, nodes: Sequence[specs.Node]) -> None:
        """Opens the runs of the students that are computed from here on."""
        for _, student in self._missing(nodes):
            self._tracker.start(run_info(self._sweep, student))

    def log(self, nodes: Sequence[specs.Node], step: int, metrics: Mapping[str, np.ndarray]) -> None:
        """One point of each node's curve; metrics: (nodes, ...) each."""
        for lane, student in self._missing(nodes):
            row = {name: values[lane : lane + 1] for name, values in metrics.items()}
            self._tracker.log(specs.run_id(student), [step], self._shown(student, row))

    def finish(self, nodes: Sequence[specs.Node]) -> None:
        """Closes the runs of students that are stored."""
        for _, student in self._missing(nodes):
            _, curves = self._curves(student)
            self._finish(student, curves)

    def stored(self, nodes: Sequence[specs.Node]) -> None:
        """Sends the whole curves of stored students that the tracker has not had yet."""
        for _, student in self._missing(nodes):
            self._tracker.start(run_info(self._sweep, student))
            steps, curves = self._curves(student)
            if curves:
                self._tracker.log(specs.run_id(student), steps.tolist(), curves)
            self._finish(student, curves)

    def _missing(self, nodes: Sequence[specs.Node]) -> list[tuple[int, specs.Student]]:
        """The students of the nodes, with their places, whose runs are not finished yet."""
        found = [(i, student) for i, node in enumerate(nodes) for student in self._students.get(node.key, ())]
        delivered = self._tracker.delivered() if found else frozenset()
        return [(i, student) for i, student in found if specs.run_id(student) not in delivered]

    def _curves(self, student: specs.Student) -> tuple[np.ndarray, dict[str, np.ndarray]]:
        """`(steps, {metric: values})` of a stored student as they are tracked; empty where there are none."""
        steps, curves = self._store.curves(student.key)
        return steps, self._shown(student, curves)

    def _shown(self, student: specs.Student, curves: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        trait, world = specs.trait_of(student), student.world.key
        chance = self._chances[world].get(trait) if trait else None
        return tracked(trait, curves, chance, self._traits.get(world, {}))

    def _finish(self, student: specs.Student, curves: Mapping[str, np.ndarray]) -> None:
        row = self._store.row(student.key)
        last = {name: float(values[-1]) for name, values in curves.items()}
        target = curves.get(TARGET)
        ends = {} if target is None else {"target_start": float(target[0]), "target_end": float(target[-1])}
        summary = {**last, **ends, "status": row.status}
        self._tracker.finish(specs.run_id(student), summary, exit_code=0 if row.status == "ok" else 1)


def run_info(sweep: str, student: specs.Student) -> RunInfo:
    """A student as its tracker sees it."""
    arm, trait = specs.arm_of(student), specs.trait_of(student)
    config: dict[str, Any] = {"arm": arm, "trait": trait, "key": student.key}
    for name, value in specs.lineage(student).items():
        *path, last = name.split(".")
        place = config
        for part in path:
            place = place.setdefault(part, {})
        place[last] = value
    name = f"{arm}-{trait}-base{specs.origin(student.start).seed}-{student.seed}"
    return RunInfo(specs.run_id(student), name, sweep, arm, student.world.name, trait, config)
