"""A sweep on a Ray cluster: each batch of lanes is a task. Where it runs, and what if a machine dies, is Ray's to say.
With a slice (`slices.py`) several machines compute a batch together.

The driver plans, cuts groups into batches, hands in each one as soon as its inputs are stored, and writes the tables.
A worker reads the inputs from the shared workdir, computes, and stores the batch there; only its timing comes back. A
batch whose machine dies is run again by Ray, from its last checkpoint. The driver holds nothing that is not stored: it
can be killed and started again.
"""

import collections
import contextlib
import dataclasses
import os
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from etils import epath

from subl_jax import __version__, specs
from subl_jax.engine.plan import Group
from subl_jax.engine.settings import Settings
from subl_jax.engine.timing import GroupTiming, summed
from subl_jax.errors import FleetError, InputError, OutOfMemory, Preempted, StorageError
from subl_jax.fleet import slices
from subl_jax.fleet.portable import forms_of
from subl_jax.fleet.worker import Done, Task
from subl_jax.storage.atomic import is_local
from subl_jax.storage.store import Store

# A batch moves to another machine this often before the sweep gives up: spot machines come and go, and a batch whose
# program itself kills its machines must end some day.
RETRIES = 20
_POLL = 0.1


class Run:
    """One computation of groups: which batches wait, run, and are done.

    lanes_a_batch: for a group of so many lanes. hand_in: gives Ray a task, and what stands for its result.
    """

    def __init__(
        self,
        groups: Sequence[Group],
        workdir: epath.Path,
        settings: Settings,
        store: Store,
        lanes_a_batch: Callable[[int], int],
        hand_in: Callable[[Task], Any],
    ) -> None:
        self._workdir = os.path.abspath(workdir) if is_local(workdir) else os.fspath(workdir)
        # Only the driver knows what is left to compute from a model: it lets parameters go.
        self._settings = settings.replace(keep="all")
        self._store = store
        self._give = hand_in
        self._batches: list[Group] = []
        self._group_of: list[int] = []
        self._timings: list[list[GroupTiming]] = [[] for _ in groups]
        self._cut: list[int] = []  # batches of each group
        for i, group in enumerate(groups):
            size = lanes_a_batch(len(group.nodes))
            for first in range(0, len(group.nodes), size):
                self._batches.append(dataclasses.replace(group, nodes=group.nodes[first : first + size]))
                self._group_of.append(i)
            self._cut.append(self._group_of.count(i))
        at = {node.key: i for i, batch in enumerate(self._batches) for node in batch.nodes}
        self._missing = [{at[node.key] for node in _inputs(batch) if node.key in at} for batch in self._batches]
        self._consumers: dict[int, list[int]] = collections.defaultdict(list)
        for i, missing in enumerate(self._missing):
            for j in missing:
                self._consumers[j].append(i)
        self._running: dict[Any, int] = {}

    def finished(self, preempted: Callable[[], bool]) -> Iterator[tuple[Group, Done, GroupTiming | None]]:
        """Hands in every batch once its inputs are stored, and gives each one as it finishes.

        With the last batch of a group comes the timing of the group.
        """
        import ray

        for i, missing in enumerate(self._missing):
            if not missing:
                self._hand_in(i)
        while self._running:
            if preempted():
                raise Preempted
            ready, _ = ray.wait(list(self._running), timeout=_POLL)
            for ref in ready:
                done = _result(ref)
                i = self._running.pop(ref)
                self._timings[self._group_of[i]].append(done.timing)
                yield self._batches[i], done, self._ended(self._group_of[i])
                for j in self._consumers[i]:
                    self._missing[j].discard(i)
                    if not self._missing[j]:
                        self._hand_in(j)

    @contextlib.contextmanager
    def cancelling(self) -> Iterator[None]:
        """However the block ends, no task goes on; those that run are given time to save."""
        try:
            yield
        finally:
            import ray

            for ref in self._running:
                ray.cancel(ref)
            if self._running:
                ray.wait(list(self._running), num_returns=len(self._running), timeout=slices.STOP_WITHIN)

    def _ended(self, i: int) -> GroupTiming | None:
        """The timing of group `i`, if all its batches are done."""
        parts = self._timings[i]
        return summed(parts) if len(parts) == self._cut[i] else None

    def timings(self) -> list[GroupTiming]:
        """Per group; the seconds are the sum over its batches, wherever they ran."""
        return [summed(parts) for parts in self._timings]

    def _hand_in(self, i: int) -> None:
        batch = self._batches[i]
        stored = [node.key for node in _inputs(batch) if node.stage]
        forms, sources = forms_of(batch.nodes)
        task = Task(
            version=__version__,
            workdir=self._workdir,
            settings=self._settings,
            form=batch.form,
            nodes=forms,
            keys=[node.key for node in batch.nodes],
            inputs=sorted(self._store.batches(stored)),
            sources=sources,
        )
        self._running[self._give(task)] = i


def _inputs(batch: Group) -> Iterator[specs.Node]:
    for node in batch.nodes:
        yield from node.inputs().values()


def _result(ref: Any) -> Done:
    """What a task gave.

    Raises:
      InputError, StorageError, FleetError: what went wrong in it.
    """
    import ray

    try:
        return ray.get(ref)
    except ray.exceptions.RayTaskError as error:
        if isinstance(error.cause, FleetError | InputError | StorageError):
            raise error.cause from None
        if isinstance(error.cause, OutOfMemory):
            raise FleetError(str(error.cause)) from None
        if isinstance(error.cause, Preempted):
            raise FleetError(
                f"a batch was preempted {RETRIES + 1} times; run the same command again to go on"
            ) from None
        raise
    except (ray.exceptions.WorkerCrashedError, ray.exceptions.NodeDiedError, ray.exceptions.OutOfMemoryError) as error:
        reason = " ".join(str(error).split())[:300]
        raise FleetError(f"a batch's process died {RETRIES + 1} times, on whatever machine it was: {reason}") from None
    except ray.exceptions.RuntimeEnvSetupError as error:
        raise FleetError("a machine could not be made ready: " + " ".join(str(error).split())[:300]) from None
