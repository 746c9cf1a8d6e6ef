"""What groups took."""

import contextlib
import dataclasses
import time
from collections.abc import Iterator, Sequence

from subl_jax.engine.lanes import Program
from subl_jax.engine.plan import Group
from subl_jax.runtime import ceiling, memory


@dataclasses.dataclass
class GroupTiming:
    """What a group took.

    lane_steps: those of this run, without what was restored and what teachers did not need for their target.
    waited_seconds: the part of `run_seconds` that the host spent in, or awaiting, programs.
    flops_per_second: of the work as it is counted on paper; ceiling_percent: of what a matrix product reaches on all
    the devices there are (ceiling.py).
    bytes_needed: of each device, as the compiled program reports; bytes_peak: what was in use at most so far.
    """

    stage: str
    lanes: int
    layout: str
    batches: int = 0
    lane_steps: int = 0
    compile_seconds: float = 0.0
    layout_seconds: float = 0.0
    run_seconds: float = 0.0
    waited_seconds: float = 0.0
    lane_steps_per_second: float = 0.0
    flops_per_second: float = 0.0
    ceiling_percent: float = 0.0
    bytes_needed: int = 0
    bytes_peak: int = 0


class Stopwatch:
    """Seconds of all the blocks that it ran for."""

    def __init__(self) -> None:
        self.seconds = 0.0

    @contextlib.contextmanager
    def running(self) -> Iterator[None]:
        began = time.perf_counter()
        yield
        self.seconds += time.perf_counter() - began


class GroupClock:
    """Takes the time of one group, from when it is made."""

    def __init__(self, group: Group, count: int) -> None:
        self._group = group
        self._count = count  # of the lanes that can be computed
        self._began = time.perf_counter()
        self._compiling = 0.0
        self._getting = Stopwatch()
        self._batches = 0
        self._not_needed = 0
        self.waited = Stopwatch()  # runs while the host waits for the device

    @contextlib.contextmanager
    def getting(self) -> Iterator[None]:
        """The group's program is made within the block, and a layout chosen."""
        with self._getting.running():
            yield

    def compiled(self, program: Program) -> None:
        self._compiling += program.compile_seconds

    def found(self, lanes: int) -> None:
        """A batch that is stored already."""
        self._not_needed += self._group.work * lanes

    def computed(self, not_needed: int) -> None:
        """A batch, of which so many lane-steps were restored or not needed."""
        self._batches += 1
        self._not_needed += not_needed

    def timing(self, program: Program, dtype: str) -> GroupTiming:
        """The group has ended. Called by all processes; dtype: what matrices are multiplied in."""
        seconds = time.perf_counter() - self._began - self._getting.seconds
        group, count = self._group, self._count
        lane_steps = group.work * count - self._not_needed
        whole = group.work * len(group.nodes)
        flops = group.flops * (lane_steps / whole if whole else count / len(group.nodes)) / seconds
        best = ceiling.flops_a_second(dtype)
        return GroupTiming(
            stage=group.stage.name,
            lanes=count,
            layout=str(program.layout),
            batches=self._batches,
            lane_steps=lane_steps,
            compile_seconds=self._compiling,
            layout_seconds=self._getting.seconds - self._compiling,
            run_seconds=seconds,
            waited_seconds=self.waited.seconds,
            lane_steps_per_second=lane_steps / seconds,
            flops_per_second=flops,
            ceiling_percent=100 * flops / best if best else 0.0,
            bytes_needed=program.bytes_needed,
            bytes_peak=memory.peak(),
        )


def summed(parts: Sequence[GroupTiming]) -> GroupTiming:
    """The timings of batches as that of their group; the seconds are sums, wherever the batches ran."""
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
