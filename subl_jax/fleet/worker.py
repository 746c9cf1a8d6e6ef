"""What a machine of the cluster does: one batch, from the shared workdir to the shared workdir."""

import contextlib
import dataclasses
import functools
import os
import socket
import time
from collections.abc import Callable, Sequence
from typing import Any

import jax
from etils import epath

from subl_jax import __version__, specs
from subl_jax.engine import nodes as asked
from subl_jax.engine.observers import NoDisplay, NoTracker
from subl_jax.engine.plan import Group
from subl_jax.engine.preemption import preemption_notice
from subl_jax.engine.runner import Engine
from subl_jax.engine.settings import Settings
from subl_jax.engine.timing import GroupTiming
from subl_jax.errors import InputError, StorageError
from subl_jax.fleet.portable import import_sources
from subl_jax.fleet.slices import Member
from subl_jax.runtime import cluster, devices
from subl_jax.storage.store import Store, batch_id

# How long a file that another machine has written may take to show here, in seconds: NFS keeps listings for a minute.
_VISIBLE_WITHIN = 90.0


@dataclasses.dataclass(frozen=True)
class Task:
    """What a worker is told: everything else it reads from the workdir."""

    version: str
    workdir: str
    settings: Settings
    form: str
    nodes: list[dict[str, Any]]
    keys: list[str]  # of the nodes
    inputs: list[str]  # ids of the stored batches that hold their inputs
    sources: dict[str, str]  # of modules that specs come from and that a worker may not have


@dataclasses.dataclass(frozen=True)
class Done:
    """What comes back. `batches`: the ids under which the nodes are stored."""

    timing: GroupTiming
    batches: list[str]
    machines: dict[str, list[str]]  # that computed it, and their devices
    warnings: list[str]


def compute(task: Task, member: Member | None = None) -> Done:
    """Computes and stores a batch, alone or as one of several; runs on a machine of the cluster."""
    if task.version != __version__:
        raise InputError(
            f"{socket.gethostname()} has subl_jax {__version__}, the driver has {task.version}; install the same "
            "version on all machines"
        )
    with (
        preemption_notice() as preempted,
        member.joined() if member else contextlib.nullcontext(),
        devices.usual_settings(lambda line: None),  # which the driver has said
    ):
        return _worker(task.workdir, task.settings).compute(task, preempted)


@functools.lru_cache(maxsize=1)
def _worker(workdir: str, settings: Settings) -> "_Worker":
    """Kept from one task of a process to the next, with its compiled programs."""
    return _Worker(workdir, settings)


class _Worker:
    def __init__(self, workdir: str, settings: Settings) -> None:
        devices.prepare()
        self._display = NoDisplay()
        self._store = Store(workdir, warn=self._display.warn, shared=True)
        self._preempted: Callable[[], bool] = lambda: False
        self._engine = Engine(
            epath.Path(workdir), "", self._store, settings, NoTracker(), self._display, lambda: self._preempted()
        )

    def compute(self, task: Task, preempted: Callable[[], bool]) -> Done:
        import ray

        self._preempted = preempted
        import_sources(task.sources)
        nodes = tuple(specs.from_json(form) for form in task.nodes)
        peers = cluster.peers()
        if peers.any(self._store.has_batch(task.keys)):  # its machine died just after it had stored the batch
            adopt(self._store, [batch_id(task.keys)], task.workdir)
            timing = GroupTiming(asked.stage(nodes[0]).name, 0, "stored")
        else:
            adopt(self._store, task.inputs, task.workdir)
            with self._engine.writing():
                timing = self._engine.run_group(Group(asked.stage(nodes[0]), nodes, task.form))
        return Done(
            timing=timing,
            batches=sorted(self._store.batches(task.keys)),
            machines=dict(
                peers.gather(
                    [
                        f"{socket.gethostname()}/{ray.get_runtime_context().get_node_id()[-8:]}",
                        [f"{device.platform}:{device.device_kind}" for device in jax.local_devices()],
                    ]
                )
            ),
            warnings=self._display.warnings(),
        )


def adopt(store: Store, ids: Sequence[str], workdir: epath.PathLike) -> None:
    """Takes up batches that another machine has stored.

    Raises:
      StorageError: they do not show.
    """
    deadline = time.monotonic() + _VISIBLE_WITHIN
    pause = 0.05
    while not store.find(ids):
        if time.monotonic() > deadline:
            raise StorageError(
                f"--workdir {os.fspath(workdir)}: what one machine stores, {socket.gethostname()} does not see; give a "
                "directory that all machines share (NFS, gs://…)"
            )
        time.sleep(pause)
        pause = min(2 * pause, 5.0)
