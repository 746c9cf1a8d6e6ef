"""A Ray cluster: how it is reached, and what a batch takes of one of its machines."""

import contextlib
import dataclasses
import functools
import math
import os
import re
import socket
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Self

import jax
from etils import epath

from subl_jax import specs
from subl_jax.engine import lanes
from subl_jax.engine.observers import Display, GroupInfo
from subl_jax.engine.plan import Group
from subl_jax.engine.settings import Settings
from subl_jax.engine.timing import GroupTiming
from subl_jax.errors import InputError, Preempted
from subl_jax.fleet import driver, slices, worker
from subl_jax.fleet.slices import Slice
from subl_jax.storage.store import Store, batch_id

_CONNECT_WITHIN = 5.0


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
            reason = " ".join(str(error).split())[:500].rstrip(".")  # versions that differ come in later lines
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
        size = functools.partial(self.lanes_a_batch, settings=settings)
        run = driver.Run(groups, workdir, settings, store, size, self.remote())
        total = sum(group.work * len(group.nodes) for group in groups)
        where = ", ".join(f"{count:g} {name}" for name, count in self._resources.items())
        where += f" on each of {self._slice.hosts} machines" if self._slice else ""
        count = sum(len(group.nodes) for group in groups)
        progress.begin(GroupInfo("fleet", count, "computation", total, "", f"Ray, {where} a batch"))
        with run.cancelling():
            for batch, done, timing in run.finished(preempted):
                worker.adopt(store, done.batches, workdir)
                for machine, devices in done.machines.items():
                    known = self._machines.setdefault(machine, {"devices": devices, "batches": 0})
                    known["batches"] += 1
                for line in done.warnings:
                    progress.warn(line)
                stored(batch.nodes)
                progress.advance(batch.work * len(batch.nodes))
                if timing is not None:
                    ended(timing)
                    progress.say(
                        f"{timing.stage}: {timing.lanes:,} {batch.stage.makes}s in {timing.batches:,} batches, "
                        f"{timing.run_seconds:.1f} s of machines' time, {timing.bytes_peak / 2**30:.1f} GiB in use"
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

    def remote(self) -> Callable[[worker.Task], Any]:
        """Hands a task in to Ray, and gives what stands for its result."""
        import ray
        from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

        others = {name: n for name, n in self._resources.items() if name not in ("CPU", "GPU")}
        again = {"max_retries": driver.RETRIES, "retry_exceptions": [Preempted]}
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
            return ray.remote(**options, **again)(worker.compute).remote
        # It waits where the driver is, and so is lost with the driver alone.
        here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
        waiting = ray.remote(num_cpus=0, scheduling_strategy=here, **again)(slices.together)
        computing = functools.partial(waiting.remote, worker.compute, options, self._slice)
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
