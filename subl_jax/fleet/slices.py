"""Several machines of a Ray cluster that compute a batch together: a TPU slice of several hosts, or any machines.

A task that only waits has Ray reserve the machines as one placement group, which it gives when all of them are free,
starts a process on each, and gives them back. The processes are one program (`cluster.py`): if one is lost all of them
end, and Ray runs the task that waits again.
"""

import contextlib
import dataclasses
import functools
import re
import socket
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Self

from subl_jax.errors import FleetError, InputError, PeerLost, Preempted
from subl_jax.runtime import cluster

# How long tasks have to save what they are at when the driver is told to stop, in seconds of the usual 30.
STOP_WITHIN = 20.0
# A process that has lost another one notices within this (`cluster.py`), in seconds; one that is to stop has less.
_NOTICED_WITHIN = 30.0


@dataclasses.dataclass(frozen=True)
class Slice:
    """`hosts` machines with so many `resources` each. tpu: the generation and topology of a TPU slice, as Ray knows
    them; empty for machines that need not belong together."""

    hosts: int
    resources: Mapping[str, float]
    tpu: tuple[str, str] | tuple[()] = ()

    @classmethod
    def parsed(cls, text: str, resources: Mapping[str, float]) -> Self:
        """From `N`, so many machines, or `GENERATION:TOPOLOGY`, as in v6e:4x4. Ray has to be installed.

        Raises:
          InputError: not of this form, or Ray knows no such slice.
        """
        if re.fullmatch(r"[1-9]\d*", text):
            return cls(int(text), resources)
        generation, colon, topology = text.strip().lower().partition(":")
        if not colon:
            raise InputError(f"--ray_slice={text}: expected a number of machines, or GENERATION:TOPOLOGY as in v6e:4x4")
        from ray.util import tpu

        try:
            hosts, of_host = tpu.get_tpu_worker_resources(topology, generation, dict(resources) or None)
        except ValueError as error:
            raise InputError(f"--ray_slice={text}: Ray knows no such slice: {error}") from None
        return cls(hosts, of_host, (generation, topology))

    @contextlib.contextmanager
    def reserved(self, name: str) -> Iterator[Any]:
        """The placement group of the machines, one bundle each, once all are free. One of that name is given up: it
        belongs to a process that has died.

        Raises:
          FleetError: the machines of a TPU slice do not say which slice they are of.
        """
        import ray
        from ray.util import tpu

        with contextlib.suppress(ValueError):
            ray.util.remove_placement_group(ray.util.get_placement_group(name))
        if self.tpu:
            generation, topology = self.tpu
            try:
                held = tpu.slice_placement_group(
                    topology, generation, dict(self.resources), name=name, head_reservation_timeout_s=None
                )
            except RuntimeError as error:
                raise FleetError(f"--ray_slice={generation}:{topology}: {error}") from None
            group, give_up = held.placement_group, held.shutdown
        else:
            bundles = [dict(self.resources)] * self.hosts
            group = ray.util.placement_group(bundles, strategy="STRICT_SPREAD", name=name)
            give_up = functools.partial(ray.util.remove_placement_group, group)
        try:
            ray.get(group.ready())
            yield group
        finally:
            give_up()


@dataclasses.dataclass(frozen=True)
class Member:
    """One of the processes that compute a batch together."""

    coordinator: str
    count: int
    index: int

    @contextlib.contextmanager
    def joined(self) -> Iterator[None]:
        """Within it this process is one of them, from before jax looks at its devices; once, as it ends with its task.

        All leave together where all have finished, or have been told to stop.
        """
        cluster.start(cluster.Options(None, self.coordinator, self.count, self.index))
        try:
            yield
        except PeerLost:
            raise
        except Preempted:
            cluster.leave(0)
            raise
        cluster.leave(0)


def together(compute: Callable[..., Any], options: dict[str, Any], machines: Slice, name: str, task: Any) -> Any:
    """`compute(task, member)` on every machine; gives what the first one did. Runs as a task of Ray's.

    options: of each process, as Ray takes them.

    Raises:
      PeerLost: a process or its machine was lost; Ray is to run this task again.
      what `compute` raised.
    """
    import ray
    from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

    with machines.reserved(name) as group:

        def on(index: int, function: Callable[..., Any], **changes: Any) -> Any:
            where = PlacementGroupSchedulingStrategy(group, placement_group_bundle_index=index)
            return ray.remote(**{**options, "max_retries": 0, **changes, "scheduling_strategy": where})(function)

        address = ray.get(on(0, _free_address, num_cpus=0, num_gpus=0, resources={}).remote())
        members = [
            on(i, compute, max_calls=1).remote(task, Member(address, machines.hosts, i)) for i in range(machines.hosts)
        ]
        left = list(members)
        try:
            while left:
                ended, left = ray.wait(left)
                ray.get(ended)
        except ray.exceptions.RayTaskError as error:
            raise error.cause from None
        except (
            ray.exceptions.WorkerCrashedError,
            ray.exceptions.NodeDiedError,
            ray.exceptions.OutOfMemoryError,
            ray.exceptions.TaskUnschedulableError,
        ) as error:
            raise PeerLost(" ".join(str(error).split())[:300]) from None
        finally:
            # The others notice that one is gone, or have been told to save; what still runs then is stuck.
            if left:
                _, stuck = ray.wait(left, num_returns=len(left), timeout=_NOTICED_WITHIN)
                for ref in stuck:
                    ray.cancel(ref, force=True)
        return ray.get(members[0])


def _free_address() -> str:
    """Of this machine, with a port that nothing listens at."""
    import ray

    with socket.create_server(("", 0)) as server:
        return f"{ray.util.get_node_ip_address()}:{server.getsockname()[1]}"
