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
import functools
import importlib.util
import math
import os
import pathlib
import re
import socket
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Self

import jax
from etils import epath

from subl_jax import __version__, specs
from subl_jax.engine import lanes
from subl_jax.engine.observers import Display, NoDisplay, NoTracker
from subl_jax.engine.plan import Group, inputs
from subl_jax.engine.runner import Engine, GroupTiming, preemption_notice, work
from subl_jax.engine.settings import Settings
from subl_jax.errors import FleetError, InputError, OutOfMemory, Preempted, StorageError
from subl_jax.fleet import slices
from subl_jax.fleet.slices import Member, Slice
from subl_jax.runtime import cluster, devices
from subl_jax.stages import stage_of
from subl_jax.storage.atomic import is_local
from subl_jax.storage.store import Store, batch_id

# A batch moves to another machine this often before the sweep gives up: spot machines come and go, and a batch whose
# program itself kills its machines must end some day.
_RETRIES = 20
# How long a file that another machine has written may take to show here, in seconds: NFS keeps listings for a minute.
_VISIBLE_WITHIN = 90.0
_CONNECT_WITHIN = 5.0
_POLL = 0.1


@dataclasses.dataclass(frozen=True)
class Fleet:
    """A Ray cluster, and what a batch takes of one of its machines.

    Args:
      address: `HOST:PORT` of its head; `auto` is the cluster that this machine belongs to.
      resources: of each batch, as Ray counts them: `{"TPU": 4}`, `{"GPU": 1, "CPU": 8}`. Empty: all TPUs of a machine,
        or one GPU, or all CPUs, whichever the cluster has.
      slice: what computes a batch together, if not one machine alone: so many machines, `2`, each with those
        resources, or a TPU slice, `v6e:4x4`, with all its chips.
    """

    address: str = "auto"
    resources: Mapping[str, float] = dataclasses.field(default_factory=dict)
    slice: str = ""

    @classmethod
    def parsed(cls, address: str, resources: str, slice: str = "") -> Self:
        """From text: `resources` as `GPU=1,CPU=8`.

        Raises:
          InputError: not of this form.
        """
        found: dict[str, float] = {}
        for part in filter(None, resources.split(",")):
            match = re.fullmatch(r"\s*([\w.:-]+)\s*=\s*(\d+(?:\.\d+)?)\s*", part)
            if not match or float(match[2]) <= 0:
                raise InputError(f"--ray_resources={resources}: {part!r} is not NAME=NUMBER, as in GPU=1,CPU=8")
            found[match[1]] = float(match[2])
        return cls(address, found, slice)

    @contextlib.contextmanager
    def connected(self) -> Iterator["Cluster"]:
        """The cluster; a connection that the caller has made is used, and stays.

        Raises:
          InputError: Ray is not installed, or there is no such cluster.
        """
        try:
            import ray
        except ModuleNotFoundError:
            raise InputError("--launcher=ray: Ray is not installed; pip install 'subl_jax[ray]'") from None
        # The driver computes nothing, and must not take an accelerator from a batch.
        jax.config.update("jax_platforms", "cpu")
        if ray.is_initialized():
            yield Cluster(self.resources, self.slice)
            return
        self._check_address()
        try:
            ray.init(
                address=self.address,
                # Every machine computes with the driver's own version of this package.
                runtime_env={"py_modules": [os.path.dirname(os.path.dirname(os.path.abspath(__file__)))]},
                log_to_driver=False,
                logging_level="error",
                configure_logging=False,
            )
        except Exception as error:  # of many types: no cluster, a dead head, another version of Ray or Python
            reason = " ".join(str(error).split("\n")[0].split()).rstrip(".")
            raise InputError(f"--ray_address={self.address}: no cluster to be reached: {reason}") from None
        try:
            yield Cluster(self.resources, self.slice)
        finally:
            ray.shutdown()

    def _check_address(self) -> None:
        """Raises InputError where nothing listens: Ray itself would try for minutes."""
        if self.address == "auto":
            return
        host, _, port = self.address.rpartition(":")
        if not re.fullmatch(r"[\w.-]+", host) or not port.isdigit():
            raise InputError(
                f"--ray_address={self.address}: expected auto or HOST:PORT of the cluster's head; from outside the "
                "cluster, hand the whole command in with `ray job submit`"
            )
        try:
            socket.create_connection((host, int(port)), timeout=_CONNECT_WITHIN).close()
        except (OSError, OverflowError) as error:
            reason = getattr(error, "strerror", None) or str(error)
            raise InputError(f"--ray_address={self.address}: no cluster to be reached: {reason}") from None


@dataclasses.dataclass(frozen=True)
class _Task:
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
class _Done:
    """What comes back. `batches`: the ids under which the nodes are stored."""

    timing: GroupTiming
    batches: list[str]
    machines: dict[str, list[str]]  # that computed it, and their devices
    warnings: list[str]


class Cluster:
    """A cluster that is connected. `facts` says what a sweep ran on, once it has."""

    def __init__(self, resources: Mapping[str, float], slice: str = "") -> None:
        of_tpu = ":" in slice  # Ray itself knows what a machine of it has
        self._resources = dict(resources) or ({} if of_tpu else _resources_of_a_machine())
        self._slice = Slice.parsed(slice, self._resources) if slice else None
        if self._slice:
            self._resources = dict(self._slice.resources)
        self._machines: dict[str, dict[str, Any]] = {}

    @property
    def facts(self) -> dict[str, Any]:
        together = {"slice": dataclasses.asdict(self._slice)} if self._slice else {}
        return {"launcher": "ray", "resources": self._resources, **together, "machines": self._machines}

    def compute(
        self,
        groups: Sequence[Group],
        stored: Callable[[Sequence[specs.Node]], None],
        ended: Callable[[GroupTiming], None],
        *,
        workdir: epath.Path,
        settings: Settings,
        store: Store,
        progress: Display,
        preempted: Callable[[], bool],
    ) -> list[GroupTiming]:
        """Computes `groups`, in the order they come in.

        Calls `stored` with the nodes of every finished batch, and `ended` with the timing of every finished group.

        Raises:
          InputError: a machine has another version of the package, or not the modules that specs come from.
          Preempted: `preempted` said so; what ran has been told to save.
          StorageError: results could not be written, or the workdir is not the same on all machines.
          FleetError: no machine can compute a batch.
        """
        if not groups:
            return []
        run = _Run(self, groups, workdir, settings, store)
        total = sum(work(group) * len(group.nodes) for group in groups)
        where = ", ".join(f"{count:g} {name}" for name, count in self._resources.items())
        where += f" on each of {self._slice.hosts} machines" if self._slice else ""
        progress.begin("fleet", sum(len(group.nodes) for group in groups), total, f"Ray, {where} a batch")
        with run.cancelling():
            for batch, done, timing in run.finished(preempted):
                _adopt(store, done.batches, workdir)
                for machine, devices in done.machines.items():
                    known = self._machines.setdefault(machine, {"devices": devices, "batches": 0})
                    known["batches"] += 1
                for line in done.warnings:
                    progress.warn(line)
                stored(batch.nodes)
                progress.advance(work(batch) * len(batch.nodes))
                if timing is not None:
                    ended(timing)
                    progress.say(
                        f"{timing.stage}: {timing.lanes:,} lanes in {timing.batches:,} batches, "
                        f"{timing.run_seconds:.1f} s of machines' time, "
                        f"{timing.lane_steps_per_second:,.0f} lane-steps/s, "
                        f"{timing.ceiling_percent:.0f} % of the ceiling, {timing.bytes_peak / 2**30:.1f} GiB in use"
                    )
        progress.end()
        store.remove_leftovers()
        return run.timings()

    def lanes_a_batch(self, count: int, settings: Settings) -> int:
        """Batches for every machine that there is, of lanes for all its devices, and none larger than usual."""
        import ray

        accelerators = {name: int(n) for name, n in self._resources.items() if name in ("TPU", "GPU") and n >= 1}
        n_devices = settings.devices or next(iter(accelerators.values()), int(self._resources.get("CPU", 1)) or 1)
        most = settings.lanes_a_batch or lanes.lanes_a_batch("elsewhere" if accelerators else "cpu")
        there = ray.cluster_resources()
        hosts = self._slice.hosts if self._slice else 1
        n_devices *= hosts
        workers = max(1, min(int(there.get(name, 0.0) // (n * hosts)) for name, n in self._resources.items()))
        share = math.ceil(count / workers / n_devices) * n_devices
        return max(1, min(most, share))

    def remote(self) -> Callable[["_Task"], Any]:
        """Hands a task in to Ray, and gives what stands for its result."""
        import ray
        from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

        others = {name: n for name, n in self._resources.items() if name not in ("CPU", "GPU")}
        again = {"max_retries": _RETRIES, "retry_exceptions": [Preempted]}
        options: dict[str, Any] = {
            "num_cpus": self._resources.get("CPU", 1),
            "num_gpus": self._resources.get("GPU", 0),
            "resources": others,
        }
        if "TPU" in others or "GPU" in self._resources:
            options["max_calls"] = 1  # a process holds on to its chips until it ends
        else:
            cores = max(1, int(options["num_cpus"]))
            options["runtime_env"] = {"env_vars": {"JAX_NUM_CPU_DEVICES": str(cores), "JAX_PLATFORMS": "cpu"}}
        if not self._slice:
            return ray.remote(**options, **again)(_compute).remote
        # It waits where the driver is, and so is lost with the driver alone.
        here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
        waiting = ray.remote(num_cpus=0, scheduling_strategy=here, **again)(slices.together)
        computing = functools.partial(waiting.remote, _compute, options, self._slice)
        return lambda task: computing(f"subl_jax {batch_id(task.keys)}", task)


def _resources_of_a_machine() -> dict[str, float]:
    """What a batch takes where nothing is said."""
    import ray

    machines = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    for name in ("TPU", "GPU", "CPU"):
        there = [machine[name] for machine in machines if machine.get(name, 0) >= 1]
        if there:
            return {name: 1.0 if name == "GPU" else min(there)}
    return {"CPU": 1.0}  # machines are yet to come


# --- the driver ---


class _Run:
    """One computation of groups: which batches wait, run, and are done."""

    def __init__(
        self, machines: Cluster, groups: Sequence[Group], workdir: epath.Path, settings: Settings, store: Store
    ) -> None:
        self._workdir = os.path.abspath(workdir) if is_local(workdir) else os.fspath(workdir)
        # Only the driver knows what is left to compute from a model: it lets parameters go.
        self._settings = settings.replace(keep="all")
        self._store = store
        self._computing = machines.remote()
        self._batches: list[Group] = []
        self._group_of: list[int] = []
        self._timings: list[list[GroupTiming]] = [[] for _ in groups]
        self._cut: list[int] = []  # batches of each group
        for i, group in enumerate(groups):
            size = machines.lanes_a_batch(len(group.nodes), settings)
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

    def finished(self, preempted: Callable[[], bool]) -> Iterator[tuple[Group, _Done, GroupTiming | None]]:
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
        return _summed(parts) if len(parts) == self._cut[i] else None

    def timings(self) -> list[GroupTiming]:
        """Per group; the seconds are the sum over its batches, wherever they ran."""
        return [_summed(parts) for parts in self._timings]

    def _hand_in(self, i: int) -> None:
        batch = self._batches[i]
        stored = [node.key for node in _inputs(batch) if not isinstance(node, specs.Imported)]
        forms = [_portable(specs.to_json(node)) for node in batch.nodes]
        modules = {cls.partition(":")[0] for form in forms for cls in _classes(form)}
        task = _Task(
            version=__version__,
            workdir=self._workdir,
            settings=self._settings,
            form=batch.form,
            nodes=forms,
            keys=[node.key for node in batch.nodes],
            inputs=sorted(self._store.batches(stored)),
            sources={name: _source(name) for name in sorted(modules) if "." not in name},
        )
        self._running[self._computing(task)] = i


def _inputs(batch: Group) -> Iterator[specs.Node]:
    for node in batch.nodes:
        yield from inputs(node)


def _portable(form: Any) -> Any:
    """A spec as JSON, with the paths of local files in full: a worker has a folder of its own."""
    if not isinstance(form, dict):
        return form
    made = {name: _portable(value) for name, value in form.items()}
    if form.get("class") == f"{specs.__name__}:Imported" and form["path"] and is_local(form["path"]):
        made["path"] = os.path.abspath(form["path"])
    return made


def _classes(form: Any) -> Iterator[str]:
    """The classes of a spec and of all within it, as JSON names them."""
    if isinstance(form, dict):
        yield form["class"]
        for value in form.values():
            yield from _classes(value)


@functools.cache
def _source(module: str) -> str:
    """Of a single file (a sweep file, a world beside it), which no other machine need have."""
    return pathlib.Path(sys.modules[module].__file__).read_text()


def _result(ref: Any) -> _Done:
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
                f"a batch was preempted {_RETRIES + 1} times; run the same command again to go on"
            ) from None
        raise
    except (ray.exceptions.WorkerCrashedError, ray.exceptions.NodeDiedError, ray.exceptions.OutOfMemoryError) as error:
        reason = " ".join(str(error).split())[:300]
        raise FleetError(f"a batch's process died {_RETRIES + 1} times, on whatever machine it was: {reason}") from None
    except ray.exceptions.RuntimeEnvSetupError as error:
        raise FleetError("a machine could not be made ready: " + " ".join(str(error).split())[:300]) from None


def _summed(parts: Sequence[GroupTiming]) -> GroupTiming:
    """The timings of batches as that of their group."""
    sums = {
        name: sum(getattr(part, name) for part in parts)
        for name in ("lanes", "batches", "lane_steps", "compile_seconds", "layout_seconds", "run_seconds")
    }
    waited, seconds = sum(part.waited_seconds for part in parts), sums["run_seconds"]
    flops = sum(part.flops_per_second * part.run_seconds for part in parts)
    return GroupTiming(
        stage=parts[0].stage,
        layout=parts[0].layout,
        waited_seconds=waited,
        lane_steps_per_second=sums["lane_steps"] / seconds if seconds else 0.0,
        flops_per_second=flops / seconds if seconds else 0.0,
        ceiling_percent=sum(part.ceiling_percent * part.run_seconds for part in parts) / seconds if seconds else 0.0,
        bytes_needed=max(part.bytes_needed for part in parts),
        bytes_peak=max(part.bytes_peak for part in parts),
        **sums,
    )


def _adopt(store: Store, ids: Sequence[str], workdir: epath.PathLike) -> None:
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


# --- a worker ---


def _compute(task: _Task, member: Member | None = None) -> _Done:
    """Computes and stores a batch, alone or as one of several; runs on a machine of the cluster."""
    if task.version != __version__:
        raise InputError(
            f"{socket.gethostname()} has subl_jax {__version__}, the driver has {task.version}; install the same "
            "version on all machines"
        )
    with preemption_notice() as preempted, member.joined() if member else contextlib.nullcontext():
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

    def compute(self, task: _Task, preempted: Callable[[], bool]) -> _Done:
        import ray

        self._preempted = preempted
        _import(task.sources)
        nodes = tuple(specs.from_json(form) for form in task.nodes)
        peers = cluster.peers()
        if peers.any(self._store.has_batch(task.keys)):  # its machine died just after it had stored the batch
            _adopt(self._store, [batch_id(task.keys)], task.workdir)
            timing = GroupTiming(stage_of(nodes[0]).name, 0, "stored")
        else:
            _adopt(self._store, task.inputs, task.workdir)
            with self._engine.writing():
                timing = self._engine.run_group(Group(stage_of(nodes[0]), nodes, task.form))
        return _Done(
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


def _import(sources: Mapping[str, str]) -> None:
    """Makes the driver's own modules, even where this machine has others of the same names."""
    for name, source in sources.items():
        there = sys.modules.get(name)
        if there is None or getattr(there, "__source__", None) != source:
            module = importlib.util.module_from_spec(importlib.util.spec_from_loader(name, loader=None))
            module.__source__ = source
            sys.modules[name] = module
            exec(compile(source, f"<{name} of the driver>", "exec"), module.__dict__)
