"""A group's program in a layout that fits: configured, remembered, or measured; compiled once, narrowed when memory
runs out."""

import contextlib
import dataclasses
import functools
import gc
import math

from subl_jax import specs
from subl_jax.engine import lanes, layouts
from subl_jax.engine import nodes as asked
from subl_jax.engine.inputs import Inputs
from subl_jax.engine.observers import Display
from subl_jax.engine.pace import FLOPS_A_SECOND_AT_LEAST
from subl_jax.engine.plan import Group
from subl_jax.engine.settings import Settings
from subl_jax.errors import OutOfMemory
from subl_jax.runtime import cluster, memory


class Programs:
    """The compiled programs of a sweep. All processes call its methods together."""

    def __init__(self, settings: Settings, inputs: Inputs, display: Display) -> None:
        self._peers = cluster.peers()
        self._settings = settings
        self._inputs = inputs
        self._display = display
        self._compiled: dict[tuple[str, lanes.Layout], lanes.Program] = {}  # by form and layout
        self._most: dict[str, lanes.Layout] = {}  # of forms that memory was too small for: the largest to try

    def default_layout(self, count: int, form: str) -> lanes.Layout:
        """Of so many lanes, where nothing is measured."""
        settings, most = self._settings, self._most.get(form)
        if most is not None:
            width = most.width // most.fsdp
            return lanes.default_layout(count, most.all_devices, width, most.lanes, most.tensor, most.fsdp)
        devices, sharing = lanes.all_devices(settings.devices), (settings.tensor, settings.fsdp)
        return lanes.default_layout(count, devices, settings.width, settings.lanes_a_batch, *sharing)

    def hold(self, group: Group, count: int, most: int | None) -> None:
        """From here on, batches of the group have at most so many lanes, as far as a layout can be narrowed."""
        layout = self.default_layout(count, group.form)
        if most is not None and layout.lanes > most and (narrower := lanes.narrower(layout, most)):
            self._most[group.form] = narrower

    def fitting(self, group: Group, nodes: list[specs.Node]) -> lanes.Program:
        """The group's program in a layout that there is memory for, as far as can be known before it runs.

        Raises:
          OutOfMemory: not even one lane fits.
        """
        while True:
            program, error, fraction = None, None, 1.0
            try:
                program = self._chosen(group, nodes)
                layout, wanted = program.layout, program.bytes_needed - program.bytes_there
                there = memory.free(layout.all_devices // self._peers.count)
                if wanted > there and lanes.narrower(layout):
                    error = OutOfMemory(f"it needs {wanted / 2**30:.1f} GiB, {there / 2**30:.1f} GiB are there")
                    fraction = there / wanted
            except OutOfMemory as full:
                layout, error = self.default_layout(len(nodes), group.form), full
            said = self._peers.gather(error and [dataclasses.astuple(layout), str(error), error.final, fraction])
            first = next((each for each in said if each), None)
            if first is None:
                return program
            program = None  # before the next one is made
            layout, fraction = lanes.Layout(*first[0]), min(each[-1] for each in said if each)
            # More lanes than this fraction of them do not fit either: half of them need at least half as much. Finding
            # that out would take a GPU a minute of compiling each time.
            self.narrow(group, layout, OutOfMemory(*first[1:-1]), fraction * layout.lanes)

    def for_batch(self, group: Group, program: lanes.Program, batch: list[specs.Node]) -> lanes.Program:
        """`program`, or a wider one where a batch that goes on was cut for more lanes."""
        if len(batch) <= program.layout.lanes:
            return program
        return self._of(group, batch[0], self.default_layout(len(batch), group.form))

    def narrow(self, group: Group, layout: lanes.Layout, error: OutOfMemory, most: float = math.inf) -> None:
        """From here on, batches of the group have half as many lanes as in `layout`, and halved again down to `most`.

        Raises:
          OutOfMemory: there is but one lane left.
        """
        narrower = None if error.final else lanes.narrower(layout, most)
        if narrower is None:
            raise OutOfMemory(
                f"{group.stage.name}: not even {_at_a_time(group, layout)} fits into memory ({error}); split the model "
                "over devices (config.engine.tensor or fsdp), or make a batch or its parts smaller"
            ) from None
        line = f"{_at_a_time(group, layout)} does not fit into memory; going on with {narrower.lanes:,}"
        self._display.warn(f"{group.stage.name}: {line}")
        self._compiled = {key: program for key, program in self._compiled.items() if key[0] != group.form}
        self._most[group.form] = narrower
        gc.collect()  # what the error's frames still hold

    def _of(self, group: Group, node: specs.Node, layout: lanes.Layout) -> lanes.Program:
        """The program in this layout, compiled where it is not yet."""
        known = self._compiled.get((group.form, layout))
        if known is not None:
            return dataclasses.replace(known, compile_seconds=0.0)
        program = lanes.compile_program(group.stage, node, layout, asked.shapes(node), self._settings.matmul)
        self._compiled[group.form, layout] = program
        return program

    def _chosen(self, group: Group, nodes: list[specs.Node]) -> lanes.Program:
        """The program in the layout that is configured, remembered, measured, or known to be good."""
        settings, default = self._settings, self.default_layout(len(nodes), group.form)
        compiled = functools.partial(self._of, group, nodes[0])
        fixed = settings.width or settings.lanes_a_batch or not settings.measure_layout or group.form in self._most
        surely_short = group.flops < settings.measure_above * FLOPS_A_SECOND_AT_LEAST
        if fixed or surely_short or default.lanes == 1:
            return compiled(default)
        sharing = {"tensor": settings.tensor, "fsdp": settings.fsdp}
        return layouts.choose(
            group.form,
            candidates=lanes.candidates(len(nodes), lanes.all_devices(settings.devices), **sharing),
            total_steps=len(nodes) * sum(group.stage.rounds(nodes[0])),
            measure_above=settings.measure_above,
            timed=functools.partial(self._timed, group, nodes),
            compiled=compiled,
        )

    def _timed(self, group: Group, nodes: list[specs.Node], layout: lanes.Layout) -> tuple[float, lanes.Program | None]:
        """Seconds per lane-step in this layout, and the program; infinite where there is no room for it."""
        program, seconds = None, math.inf
        with contextlib.suppress(OutOfMemory):  # a layout that there is no room for is never the fastest
            program = self._of(group, nodes[0], layout)
        if self._peers.any(program is None):
            return math.inf, None
        longest = max(group.stage.rounds(nodes[0]), default=0)
        steps = longest if asked.whole(nodes[0]) else min(layouts.TIMED_STEPS, longest)
        self._inputs.await_stored(nodes)
        arguments = self._peers.together(lambda: self._inputs.arguments(nodes, program))
        with contextlib.suppress(OutOfMemory), memory.noticed():
            seconds = lanes.seconds_per_lane_step(program, arguments, steps)
        return max(self._peers.gather(seconds)), program


def _at_a_time(group: Group, layout: lanes.Layout) -> str:
    return f"a batch of {layout.lanes:,} {group.stage.makes}{'s'[: layout.lanes != 1]}"
