"""The host loop: groups one after the other, batches of lanes, rounds in stretches; storing, logging and showing."""

import collections
import contextlib
import dataclasses
import functools
import gc
import hashlib
import json
import math
import pathlib
import signal
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from etils import epath

from subl_jax import specs
from subl_jax.engine import lanes, layouts
from subl_jax.engine.checkpoint import Checkpoints, interrupted
from subl_jax.engine.delivery import Delivery
from subl_jax.engine.observers import Display, Tracker
from subl_jax.engine.plan import Group, Plan, droppable, inputs, make_plan
from subl_jax.engine.records import named_metrics
from subl_jax.engine.settings import Settings
from subl_jax.engine.writer import Writer
from subl_jax.errors import OutOfMemory, PeerLost, Preempted, StorageError
from subl_jax.runtime import ceiling, cluster, memory
from subl_jax.stages import collecting, draws, input_shapes
from subl_jax.storage.retrying import patiently
from subl_jax.storage.store import Row, Store

# Any machine does more than this; groups that are short even so are not worth timing.
_FLOPS_A_SECOND_AT_LEAST = 2e10
# Seconds after which it is looked again how long a step takes.
_PACE_HOLDS = 60.0

Tree = Any
Record = dict[str, np.ndarray]  # one round of a batch, each (lanes, …)


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


# Computes groups on other machines, and calls back with the nodes that it finds stored, and with the timing of each
# group that has ended: (groups, stored, ended) → timings.
Elsewhere = Callable[
    [Sequence[Group], Callable[[Sequence[specs.Node]], None], Callable[[GroupTiming], None]], list[GroupTiming]
]


def plan_of(students: Sequence[specs.Student], store: Store) -> Plan:
    """The plan of what is left, after checking that the stored nodes it builds on are whole."""
    while True:
        plan = make_plan(students, store.done(), store.bare())
        if store.verify(plan.reused) == plan.reused.keys():
            return plan


class Engine:
    """Computes a plan into a store.

    Args:
      sweep: the name under which students are tracked.
      preempted: asked every few seconds; true makes the engine save what runs and raise `Preempted`.
      profile: where to write jax's trace of some steps of the group that has the most to compute.
    """

    def __init__(
        self,
        workdir: epath.Path,
        sweep: str,
        store: Store,
        settings: Settings,
        tracker: Tracker,
        progress: Display,
        preempted: Callable[[], bool] = lambda: False,
        profile: pathlib.Path | None = None,
    ) -> None:
        self._workdir = workdir
        self._store = store
        self._settings = settings
        self._delivery = Delivery(tracker, sweep, store)
        self._progress = progress
        self._preempted = preempted
        self._peers = cluster.peers()
        self._writer = Writer()
        self._droppable: set[str] = set()
        self._left: collections.Counter[str] = collections.Counter()  # nodes still to be computed from each node
        # Of the batch that has been computed last, and may not be on the disk yet; the same in all processes.
        self._fresh: dict[str, Row] = {}
        self._stored: Callable[[], None] | None = None  # what is done once that batch is stored
        self._programs: dict[tuple[str, lanes.Layout], lanes.Program] = {}
        self._paces: dict[tuple[str, lanes.Layout], _Pace] = {}  # of programs
        self._most: dict[str, lanes.Layout] = {}  # of forms that memory was too small for: the largest to try
        self._profile = profile
        self._profiled = ""  # the form of the group to trace

    def compute(self, plan: Plan, elsewhere: Elsewhere | None = None) -> list[GroupTiming]:
        """Computes every pending node, in this process or `elsewhere`.

        Raises:
          Preempted: `preempted` said so; what finished is stored, and what ran is saved.
          StorageError: results could not be written; what was stored before is kept.
        """
        self._delivery.expect(plan.students)
        if self._peers.leads:
            self._delivery.stored(list(plan.reused.values()))
        self._droppable = droppable(plan, self._settings.keep)
        self._left = collections.Counter(
            parent.key for group in plan.groups for node in group.nodes for parent in inputs(node)
        )
        record = self._delivery.sweep(self._settings) if self._peers.leads and plan.groups else None
        if elsewhere is not None:
            timings = elsewhere(plan.groups, self._finished, lambda timing: record.add(dataclasses.asdict(timing)))
        else:
            self._progress.plan(len(plan.groups))
            self._profiled = max(plan.groups, key=lambda group: group.flops).form if plan.groups else ""
            with self.writing():
                timings = []
                for group in plan.groups:
                    timings.append(self.run_group(group))
                    if record:
                        record.add(dataclasses.asdict(timings[-1]))
                    self._let_go(group.nodes)
        if record:
            record.finish()
        self._let_go(())
        # What is left there belongs to batches that came to be cut in another way after an interruption.
        if self._peers.leads:
            patiently(lambda: (self._workdir / "checkpoints").rmtree(missing_ok=True))
        return timings

    @contextlib.contextmanager
    def writing(self) -> Iterator[None]:
        """When the block ends, all that was computed in it is stored, or the error says what is not."""
        try:
            yield
        except BaseException as error:
            # What comes first is told; the batch that is being written is still given its time. Of several processes
            # the others may not be here: what they all have stored is then tracked and tidied up by the next run.
            with contextlib.suppress(StorageError):
                if self._peers.count == 1 or isinstance(error, Preempted):
                    self._settle()
                self._writer.wait()
            raise
        self._settle()
        self._peers.together(self._writer.wait)

    def _hand_over(
        self, rows: Sequence[Row], put: Callable[[], dict[str, Any] | None], stored: Callable[[], None]
    ) -> None:
        """Writes a batch behind what comes next: this process's part by `put`, and when all have theirs, `stored`."""
        self._settle()
        self._fresh = {row.key: row for row in rows}
        self._stored = stored
        self._writer.add(put)

    @property
    def _written(self) -> bool:
        """Whether this process's part of a batch that was handed over is on the disk."""
        return self._stored is not None and self._writer.done

    def _settle(self) -> None:
        """Returns when the batch that was handed over is stored, and known to all processes. They call it together."""
        stored, self._stored = self._stored, None
        if stored is None:
            return
        self._fresh = {}
        self._share(self._writer.wait)
        self._writer.add(stored)

    def run_group(self, group: Group) -> GroupTiming:
        """Computes the nodes of one group within `writing`; its inputs are stored. Raises as `compute`."""
        alive, lost = self._split_by_parents(group)
        if lost:
            rows = list(lost.values())
            self._share(lambda: self._store.put(group.stage.name, rows) if self._peers.leads else None)
            if self._peers.leads:
                self._delivery.stored([node for node in group.nodes if node.key in lost])
        layout = self._default_layout(max(len(alive), 1), group.form)
        self._progress.begin(group.stage.name, len(group.nodes), work(group) * len(alive), str(layout))
        if not alive:
            self._progress.end("none of its inputs are there")
            return GroupTiming(group.stage.name, len(group.nodes), "none")

        self._progress.compiling()
        began, compiling, getting, waited, batches, earlier = time.perf_counter(), 0.0, 0.0, 0.0, 0, 0
        left = {node.key: node for node in alive}
        while left:
            asked = time.perf_counter()
            program = self._fitting_program(group, list(left.values()))
            # Programs can take as long to compile as a machine has left.
            if self._peers.any(self._preempted()):
                raise Preempted
            compiling, getting = compiling + program.compile_seconds, getting + time.perf_counter() - asked
            self._progress.advance(0)
            try:
                for batch in self._batches(group, list(left.values()), program.layout.lanes):
                    # It may have been stored by another machine, which died after it.
                    if self._peers.any(self._store.has_batch([node.key for node in batch])):
                        earlier += work(group) * len(batch)
                    else:
                        done = self._run_batch(group, program, batch)
                        waited, batches = waited + done.waited, batches + 1
                        earlier += done.earlier + done.spared
                    for node in batch:
                        del left[node.key]
            except OutOfMemory as error:
                self._narrow(group, program.layout, error)
        seconds = time.perf_counter() - began - getting
        lane_steps = work(group) * len(alive) - earlier
        whole = work(group) * len(group.nodes)
        share = lane_steps / whole if whole else len(alive) / len(group.nodes)
        flops = group.flops * share / seconds
        best = ceiling.flops_a_second(self._dtype(group))
        timing = GroupTiming(
            stage=group.stage.name,
            lanes=len(alive),
            layout=str(program.layout),
            batches=batches,
            lane_steps=lane_steps,
            compile_seconds=compiling,
            layout_seconds=getting - compiling,
            run_seconds=seconds,
            waited_seconds=waited,
            lane_steps_per_second=lane_steps / seconds,
            flops_per_second=flops,
            ceiling_percent=100 * flops / best if best else 0.0,
            bytes_needed=program.bytes_needed,
            bytes_peak=memory.peak(),
        )
        shares = [f"{timing.ceiling_percent:.0f} % of the ceiling"] if flops and best else []
        self._progress.end(", ".join([*shares, f"{timing.bytes_peak / 2**30:.1f} GiB in use"]))
        return timing

    def _dtype(self, group: Group) -> str:
        """What matrices are multiplied in."""
        own = getattr(group.nodes[0].world, "dtype", "float32")
        bfloat16 = lanes.precision(self._settings.matmul) == lanes.precision("bfloat16")
        return "bfloat16" if bfloat16 else own

    def _run_batch(self, group: Group, program: lanes.Program, batch: list[specs.Node]) -> "_Batch":
        if len(batch) > program.layout.lanes:
            program = self._compiled(group, batch[0], self._default_layout(len(batch), group.form))
        done = _Batch(self, group, program, batch)
        done.run()
        return done

    def _fitting_program(self, group: Group, nodes: list[specs.Node]) -> lanes.Program:
        """The group's program in a layout that there is memory for, as far as can be known before it runs."""
        while True:
            program, error, share = None, None, 1.0
            try:
                program = self._program(group, nodes)
                layout, wanted = program.layout, program.bytes_needed - program.bytes_there
                there = memory.free(layout.all_devices // self._peers.count)
                if wanted > there and lanes.narrower(layout):
                    error = OutOfMemory(f"it needs {wanted / 2**30:.1f} GiB, {there / 2**30:.1f} GiB are there")
                    share = there / wanted
            except OutOfMemory as full:
                layout, error = self._default_layout(len(nodes), group.form), full
            said = self._peers.gather(error and [dataclasses.astuple(layout), str(error), error.final, share])
            first = next((each for each in said if each), None)
            if first is None:
                return program
            program = None  # before the next one is made
            layout, share = lanes.Layout(*first[0]), min(each[-1] for each in said if each)
            # More lanes than this share of them do not fit either: half of them need at least half as much. Finding
            # that out would take a GPU a minute of compiling each time.
            self._narrow(group, layout, OutOfMemory(*first[1:-1]), share * layout.lanes)

    def _narrow(self, group: Group, layout: lanes.Layout, error: OutOfMemory, most: float = math.inf) -> None:
        """From here on, batches of the group have half as many lanes as in `layout`, and halved again down to `most`.

        Raises:
          OutOfMemory: there is but one lane left.
        """
        narrower = None if error.final else lanes.narrower(layout, most)
        if narrower is None:
            raise OutOfMemory(
                f"{group.stage.name}: not even {layout} fits into memory ({error}); split the model over devices "
                "(config.engine.tensor or fsdp), or make a batch or its parts smaller"
            ) from None
        self._progress.warn(f"{group.stage.name}: {layout} does not fit into memory; going on with {narrower}")
        self._programs = {key: program for key, program in self._programs.items() if key[0] != group.form}
        self._most[group.form] = narrower
        gc.collect()  # what the error's frames still hold

    def _traced(self, group: Group, steps: int, may: bool, compute: Callable[[], Tree]) -> Tree:
        """`compute()`, traced if it is the first that may be of the group that a profile was asked of."""
        if self._profile is None or group.form != self._profiled or not may:
            return compute()
        folder, self._profile = self._profile, None
        with jax.profiler.trace(str(folder), create_perfetto_trace=True):
            done = jax.block_until_ready(compute())
        what = f"{steps} step{'s'[: steps != 1]}" if steps else "a measurement"
        self._progress.say(f"{group.stage.name}: {what} traced in {folder} (for ui.perfetto.dev or TensorBoard)")
        return done

    def _batches(self, group: Group, nodes: list[specs.Node], most: int) -> list[list[specs.Node]]:
        """The nodes in batches: first those that were interrupted, as they were cut then, so that they can go on."""
        left, batches = {node.key: node for node in nodes}, []
        saved = interrupted(self._workdir / "checkpoints") if self._peers.leads else None
        for meta in self._peers.first(saved):
            keys = meta["nodes"]
            can_hold = max(most, self._default_layout(len(keys), group.form).lanes) >= len(keys)
            if meta["form"] == group.form and left.keys() >= set(keys) and can_hold:
                batches.append([left.pop(key) for key in keys])
        rest = list(left.values())
        return batches + [rest[i : i + most] for i in range(0, len(rest), most)]

    def _share(self, put: Callable[[], dict[str, Any] | None]) -> None:
        """Stores what each process has to store, and tells all of them."""
        for entry in self._peers.gather(self._peers.together(put)):
            if entry is not None:
                self._store.adopt(entry)

    def _split_by_parents(self, group: Group) -> tuple[list[specs.Node], dict[str, Row]]:
        """The nodes whose inputs are all ok; for the others, by key, rows that say why they cannot be computed."""
        alive: list[specs.Node] = []
        lost: dict[str, Row] = {}
        for node in group.nodes:
            parents = [p for p in group.stage.inputs(node).values() if not isinstance(p, specs.Imported)]
            bad = next((p for p in parents if self._row(p.key).status != "ok"), None)
            if bad is None:
                alive.append(node)
            else:
                row = self._row(bad.key)
                why = f"its {type(bad).__name__.lower()} {row.status}: {row.why}"
                lost[node.key] = Row(node.key, specs.to_json(node), "failed", why)
        return alive, lost

    # --- what is kept ---

    def _finished(self, nodes: Sequence[specs.Node]) -> None:
        """Another machine has stored these nodes."""
        self._delivery.stored(nodes)
        self._let_go(nodes)

    def _let_go(self, nodes: Sequence[specs.Node]) -> None:
        """Removes parameters that `keep` does not ask for and that, with `nodes` done, nothing is computed from."""
        self._left.subtract(parent.key for node in nodes for parent in inputs(node))
        if not self._droppable:
            return

        def strip() -> list[dict[str, Any]]:
            gone = {key for key in self._droppable if self._drops(key) and key not in self._fresh}
            return [self._store.strip(id) for id in self._store.strippable(gone)]

        for entry in self._peers.first(self._peers.together(lambda: strip() if self._peers.leads else [])):
            self._store.adopt(entry)

    def _drops(self, key: str) -> bool:
        return key in self._droppable and self._left[key] <= 0

    # --- programs ---

    def _default_layout(self, count: int, form: str) -> lanes.Layout:
        settings, most = self._settings, self._most.get(form)
        if most is not None:
            width = most.width // most.fsdp
            return lanes.default_layout(count, most.all_devices, width, most.lanes, most.tensor, most.fsdp)
        devices, sharing = lanes.all_devices(settings.devices), (settings.tensor, settings.fsdp)
        return lanes.default_layout(count, devices, settings.width, settings.lanes_a_batch, *sharing)

    def _compiled(self, group: Group, node: specs.Node, layout: lanes.Layout) -> lanes.Program:
        known = self._programs.get((group.form, layout))
        if known is not None:
            return dataclasses.replace(known, compile_seconds=0.0)
        program = lanes.compile_program(group.stage, node, layout, input_shapes(node), self._settings.matmul)
        self._programs[group.form, layout] = program
        return program

    def _program(self, group: Group, nodes: list[specs.Node]) -> lanes.Program:
        """The group's program in the layout that is configured, remembered, measured, or known to be good."""

        def compiled(layout: lanes.Layout) -> lanes.Program:
            return self._compiled(group, nodes[0], layout)

        settings, default = self._settings, self._default_layout(len(nodes), group.form)
        fixed = settings.width or settings.lanes_a_batch or not settings.measure_layout or group.form in self._most
        surely_short = group.flops < settings.measure_above * _FLOPS_A_SECOND_AT_LEAST
        if fixed or surely_short or default.lanes == 1:
            return compiled(default)

        def timed(layout: lanes.Layout) -> tuple[float, lanes.Program | None]:
            program, seconds = None, math.inf
            with contextlib.suppress(OutOfMemory):  # a layout that there is no room for is never the fastest
                program = compiled(layout)
            if self._peers.any(program is None):
                return math.inf, None
            self._await_inputs(nodes)
            arguments = self._peers.together(lambda: self._arguments(group, nodes, program))
            with contextlib.suppress(OutOfMemory), memory.noticed():
                seconds = lanes.seconds_per_lane_step(program, arguments, steps)
            return max(self._peers.gather(seconds)), program

        longest = max(group.stage.rounds(nodes[0]), default=0)
        steps = longest if draws(nodes[0]) else min(layouts.TIMED_STEPS, longest)
        sharing = {"tensor": settings.tensor, "fsdp": settings.fsdp}
        candidates = lanes.candidates(len(nodes), lanes.all_devices(settings.devices), **sharing)
        total_steps = len(nodes) * sum(group.stage.rounds(nodes[0]))
        return layouts.choose(group.form, candidates, total_steps, settings.measure_above, timed, compiled)

    # --- inputs ---

    def _inputs(self, group: Group, node: specs.Node) -> dict[str, Tree]:
        """The artefacts that one node builds on, by the names its stage knows them by."""
        return {name: self._artefact(parent) for name, parent in group.stage.inputs(node).items()}

    def _row(self, key: str) -> Row:
        return self._fresh.get(key) or self._store.row(key)

    def _await_inputs(self, nodes: Sequence[specs.Node]) -> None:
        """Has what `nodes` are computed from stored. All processes call it together."""
        if any(parent.key in self._fresh for node in nodes for parent in inputs(node)):
            self._settle()

    def _artefact(self, node: specs.Node) -> Tree:
        return collecting.read_imported(node) if isinstance(node, specs.Imported) else self._store.get(node.key)

    def _arguments(self, group: Group, batch: list[specs.Node], program: lanes.Program) -> Tree:
        """Keys, traced values and inputs of a batch on the devices. Each process reads what its own lanes need."""
        nodes = batch[program.own] or batch[:1]
        inputs = [self._inputs(group, node) for node in nodes]
        stacked = jax.tree.map(lambda *leaves: np.stack(leaves), *inputs)
        return program.put(np.stack([lanes.lane_key(node) for node in nodes]), lanes.lane_values(nodes), stacked)


def work(group: Group) -> int:
    """What a lane of the group has to do: training steps, or samples to be kept."""
    node = group.nodes[0]
    return node.size if isinstance(node, specs.Dataset) else sum(group.stage.rounds(node))


class _Batch:
    """One batch of lanes from start to store. Each process has the records and results of its own lanes."""

    def __init__(self, engine: Engine, group: Group, program: lanes.Program, nodes: list[specs.Node]) -> None:
        self._engine = engine
        self._peers = engine._peers
        self._group = group
        self._program = program
        self._nodes = nodes
        self._own = nodes[program.own]
        self._rounds = group.stage.rounds(nodes[0])
        self._history: list[Record] = []
        self._collectors = [collecting.Collector(node) for node in self._own] if self._writes else []
        self._pace = engine._paces.setdefault((group.form, program.layout), _Pace(self._guess()))
        self._reached = np.zeros(len(self._own), bool)  # the lanes that stay as they are
        self._told = 0  # rounds whose metrics the leading process has had
        self._steps = 0  # that are known to be done
        self._running: _Stretch | None = None  # what the device is busy with
        self.waited = 0.0  # seconds, for the device
        self.spared = 0  # steps that turned out not to be needed, once the batch has ended
        self.earlier: int | None = None  # work that an earlier run has done, once it is known
        self._shown = 0  # work that the display has been told of
        self._full: str | None = None  # how a device ran out of memory
        self._tracked = engine._delivery.watched(nodes)

    @property
    def _writes(self) -> bool:
        """Whether its nodes are datasets: so for every process, even one that has padding alone, no collector."""
        return self._group.stage.artefact is None

    @property
    def _meta(self) -> dict[str, Any]:
        return {"form": self._group.form, "nodes": [node.key for node in self._nodes]}

    @functools.cached_property
    def _folder(self) -> epath.Path:
        named = json.dumps(self._meta)
        return self._engine._workdir / "checkpoints" / hashlib.sha256(named.encode()).hexdigest()[:24]

    @functools.cached_property
    def _checkpoints(self) -> Checkpoints:
        return Checkpoints(self._folder, warn=self._engine._progress.warn)

    def run(self) -> None:
        """Computes and stores the batch."""
        try:
            self._run()
        except PeerLost:
            raise  # a save that runs waits for the process that is gone
        except BaseException as error:
            self._close()
            if isinstance(error, OutOfMemory):
                # It is done again, by fewer lanes at a time.
                earlier, progress = self.earlier or 0, self._engine._progress
                progress.advance(earlier - self._shown)
                progress.advance(-earlier, restored=True)
            raise
        self._close()

    def _close(self) -> None:
        """Whatever happens, no thread goes on writing."""
        if "_checkpoints" in vars(self):
            self._checkpoints.close()

    def _run(self) -> None:
        engine, program = self._engine, self._program
        if self._peers.leads:
            engine._delivery.start(self._nodes)

        def put() -> Tree:
            with self._noticing():
                return engine._arguments(self._group, self._nodes, program)

        engine._await_inputs(self._nodes)
        arguments = self._peers.together(put)
        state = self._resumed()
        if state is None and not self._full:
            with self._noticing():
                state = program.start(arguments)
        saved = time.monotonic()
        i = len(self._history)  # the round
        within = self._steps - sum(self._rounds[:i])  # its steps so far
        agreed = self._agree()
        self.earlier = self._shown
        if agreed.preempted:
            raise Preempted
        whole = draws(self._nodes[0])
        while i < len(self._rounds) and not agreed.enough and not agreed.reached:
            left = self._rounds[i] - within
            steps = left if whole else min(left, agreed.stretch)
            ends = steps == left
            alone = agreed.alone and steps > 0 and not whole
            if alone:
                self._drain()
            timed = alone and agreed.old
            # A trace costs time, and is of training: not of what is timed or only measured, where there is more.
            may_trace = (steps > 0 and not timed) or (ends and i + 1 == len(self._rounds))
            began = time.perf_counter()
            with self._noticing():
                # On some devices the call itself computes, or waits until the stretch before is done.
                state, record = engine._traced(
                    self._group, steps, may_trace, functools.partial(program.advance, arguments, state, steps, ends)
                )
                self.waited += time.perf_counter() - began
                self._drain()
                self._running = _Stretch(record, steps, ends)
                if alone:
                    self._drain()
                # Lanes that have their target take no time, those of the next batch do.
                if timed and not may_trace and not self._reached.any():
                    self._pace.took(time.perf_counter() - began, steps, ends, engine._settings.stretch_seconds)
            if self._full:
                self._agree()
            i, within = (i + 1, 0) if ends else (i, within + steps)
            if self._writes and sum(self._rounds[:i]) >= self._nodes[0].size:
                # This round may be the last one needed, and another costs more than the wait. Processes that have
                # padding alone wait too: all agree on what comes next equally often.
                self._drain()
            agreed = self._agree(due=time.monotonic() - saved > engine._settings.checkpoint_seconds)
            if (agreed.due and i < len(self._rounds)) or agreed.preempted:
                if self._running is not None:
                    self._drain()
                    self._agree()  # a stretch whose record is lost must not be saved
                self._save(state)
                saved = time.monotonic()
                # The signal may have come while the save was made.
                agreed = self._agree()
                if agreed.preempted:
                    raise Preempted
        self._drain()
        if agreed.reached and len(self._history) < len(self._rounds):
            state = self._repeated(arguments, state)
        self._finish(state)

    def _repeated(self, arguments: Tree, state: Tree) -> Tree:
        """Ends a batch whose lanes all stay as they are: one measurement is that of all rounds that are left."""
        measured = functools.partial(self._program.advance, arguments, state, 0, True)
        with self._noticing():
            state, record = self._engine._traced(self._group, 0, True, measured)
            self._running = _Stretch(record, 0, True)
            self._drain()
        if not self._full:
            while len(self._history) < len(self._rounds):
                self._take(self._history[-1])
            spared = (sum(self._rounds) - self._steps) * len(self._nodes)
            self._steps, self._shown = sum(self._rounds), self._shown + spared
            self._engine._progress.advance(spared, restored=True)
        return state

    def _guess(self) -> float:
        """Seconds a step, of a batch that has not been timed yet: large models take less on any machine."""
        flops = self._group.flops / max(work(self._group) * len(self._group.nodes), 1)
        return flops * self._program.layout.lanes / _FLOPS_A_SECOND_AT_LEAST

    def _drain(self) -> None:
        """Waits for what the device is busy with, if it is."""
        running, self._running = self._running, None
        if running is not None:
            self._fetch(running)

    def _fetch(self, running: "_Stretch") -> None:
        """Brings a stretch's record to the host, which waits for the device to finish it."""
        began = time.perf_counter()
        with self._noticing():
            record = lanes.own_rows(running.record)
        self.waited += time.perf_counter() - began
        if self._full:
            return
        self._steps += running.steps
        if running.ends:
            self._take(self._nodes[0].world.read(record))

    @contextlib.contextmanager
    def _noticing(self) -> Iterator[None]:
        """A full device is for all processes to act on: `_agree` raises it."""
        try:
            with memory.noticed():
                yield
        except OutOfMemory as error:
            self._full = str(error)

    def _show(self, done: int) -> None:
        """done: all work so far."""
        news, self._shown = done - self._shown, done
        if news:
            self._engine._progress.advance(news, restored=self.earlier is None)

    def _take(self, record: Record) -> None:
        self._history.append(record)
        if self._group.stage.reached is not None:
            self._reached |= self._group.stage.reached(self._own, record)
        for collector, samples in zip(self._collectors, record.get("samples", ()), strict=False):
            collector.add(samples)

    def _agree(self, due: bool = False) -> "_Agreed":
        """What all processes are to do next; the leading one shows and tracks the rounds taken since the last time."""
        engine, before = self._engine, self._told
        self._told = len(self._history)
        news = self._history[before:] if self._tracked else []
        said = self._peers.gather(
            {
                "preempted": engine._preempted(),
                "due": due,
                "full": self._full,
                "stretch": self._pace.steps(engine._settings.stretch_seconds),
                "old": self._pace.is_old,
                # No other is dispatched behind a step that is too long by itself: a notice would wait for both.
                "alone": self._pace.is_old or self._pace.seconds > engine._settings.stretch_seconds,
                "written": engine._written,
                "enough": all(collector.enough for collector in self._collectors),
                "reached": self._group.stage.reached is not None and bool(self._reached.all()),
                "kept": sum(collector.kept for collector in self._collectors),
                "metrics": [{name: values[: len(self._own)] for name, values in record.items()} for record in news],
            }
        )
        full = next((each["full"] for each in said if each["full"]), None)
        if full:
            raise OutOfMemory(full)
        if all(each["written"] for each in said):
            engine._settle()
        kept = sum(each["kept"] for each in said)
        self._show(kept if self._writes else self._steps * len(self._nodes))
        if self._peers.leads:
            for i in range(len(news)):
                parts = [each["metrics"][i] for each in said if len(each["metrics"][i]["loss"])]
                joined = {name: np.concatenate([part[name] for part in parts]) for name in news[i]}
                self._log_round(before + i, joined)
        return _Agreed(
            preempted=any(each["preempted"] for each in said),
            due=said[0]["due"],
            stretch=said[0]["stretch"],
            alone=said[0]["alone"],
            old=said[0]["old"],
            enough=self._writes and all(each["enough"] for each in said),
            reached=all(each["reached"] for each in said),
        )

    def _log_round(self, i: int, record: Record) -> None:
        step = sum(self._rounds[: i + 1])
        named = named_metrics(self._nodes[0].world, record)
        self._engine._delivery.log(self._nodes, step, named)

    # --- checkpoints ---

    def _save(self, state: Tree) -> None:
        records = {name: np.stack([r[name] for r in self._history], axis=1) for name in self._history[0]}
        if self._peers.count > 1:
            records = self._program.spread(records)
        self._checkpoints.save(self._steps, state, records, self._meta)

    def _resumed(self) -> Tree | None:
        """The state to go on from."""
        sharding = self._program.sharding if self._peers.count > 1 else None
        there = self._peers.first(patiently(self._folder.exists))
        restored = self._checkpoints.restore(self._program.state, len(self._nodes), sharding) if there else None
        if restored is None:
            return None
        self._steps, state, records, _ = restored
        records = lanes.own_rows(records) if self._peers.count > 1 else records
        for i in range(next(iter(records.values())).shape[1]):
            self._take({name: values[:, i] for name, values in records.items()})
        self._told = len(self._history)  # they were tracked when they were computed
        return state

    # --- results ---

    def _finish(self, state: Tree) -> None:
        """Stores the results, behind the next batch."""
        engine, rows, put = self._engine, [], lambda: None
        if self._own and not self._full:
            with self._noticing():
                rows, put = self._put(state)
        self._agree()
        said = self._peers.gather(
            {"rows": [[row.key, row.status, row.why, row.info] for row in rows], "spared": self._spared()}
        )
        everyones = [Row(key, None, *facts) for each in said for key, *facts in each["rows"]]
        self.spared = sum(each["spared"] for each in said)

        def stored() -> None:
            if self._peers.leads:
                engine._delivery.finish(self._nodes)
            if "_checkpoints" in vars(self) and self._peers.leads:
                # What cannot be removed now is at the end of the sweep.
                with contextlib.suppress(Exception):  # an object store's client raises errors of its own kind
                    patiently(lambda: self._folder.rmtree(missing_ok=True))

        engine._hand_over(everyones, put, stored)
        self._peers.together(self._close)

    def _spared(self) -> int:
        """Steps of this process's lanes that were not needed, as they had reached their target."""
        if self._group.stage.reached is None:
            return 0
        taken = self._history[-1]["steps_taken"][: len(self._own)].astype(int)
        begun = self.earlier // len(self._nodes)
        return int((sum(self._rounds) - np.maximum(taken, begun)).sum())

    def _put(self, state: Tree) -> tuple[list[Row], Callable[[], dict[str, Any]]]:
        """Brings the results to the host; gives their rows and what writes them."""
        stage, engine, count = self._group.stage, self._engine, len(self._own)
        curves, steps, infos = None, None, [{} for _ in self._own]
        shortfalls: list[str | None] = [None] * count
        if self._writes:
            artefacts = [collector.artefact() for collector in self._collectors]
            tree = jax.tree.map(lambda *leaves: np.stack(leaves), *artefacts)
            infos = [collector.info() for collector in self._collectors]
            shortfalls = [collector.shortfall() for collector in self._collectors]
        else:
            began = time.perf_counter()
            tree = jax.tree.map(lambda x: x[:count], lanes.own_rows(stage.artefact(state)))
            self.waited += time.perf_counter() - began
            stacked = {name: np.stack([r[name][:count] for r in self._history], axis=1) for name in self._history[0]}
            curves = named_metrics(self._nodes[0].world, stacked)
            steps = np.cumsum(self._rounds)
        rows = []
        for lane, node in enumerate(self._own):
            status, why = ("failed", shortfalls[lane]) if shortfalls[lane] else _health(lane, tree, curves, steps)
            rows.append(Row(node.key, specs.to_json(node), status, why, infos[lane]))

        def put() -> dict[str, Any]:
            for node, collector in zip(self._own, self._collectors, strict=False):  # only datasets have them
                collecting.write_files(engine._workdir, node, collector.table())
            bare = all(engine._drops(node.key) for node in self._own)
            return engine._store.put(stage.name, rows, tree, curves, steps, bare=bare)

        return rows, put


class _Agreed(NamedTuple):
    """What the processes have agreed on.

    preempted: one of them is to stop. due: a save is. enough: every dataset has its samples. reached: every lane has
    its target. stretch: steps at a time. alone: the next stretch has nothing before or behind it. old: it is timed.
    """

    preempted: bool
    due: bool
    enough: bool
    reached: bool
    stretch: int
    alone: bool
    old: bool


class _Stretch(NamedTuple):
    """Steps of one call: all of a round, or so many that the host can look up every few seconds."""

    record: Tree
    steps: int
    ends: bool  # the round, with a measurement


class _Pace:
    """How long a step of a program takes, in seconds: a guess, then what a stretch took that ran alone.

    Of stretches that wait for one another no time is taken: devices differ in when a call returns.
    """

    def __init__(self, guess: float) -> None:
        self.seconds = guess
        self._timed = -math.inf
        self._ended = False  # the stretch before ended a round, and was too long with its measurement

    @property
    def is_old(self) -> bool:
        """It is to be timed: the machine may be busier or idler by now."""
        return time.monotonic() - self._timed > _PACE_HOLDS

    def steps(self, seconds: float) -> int:
        """As many as take at most these seconds, or one."""
        return int(min(max(seconds / max(self.seconds, 1e-12), 1), 2**31 - 1))

    def took(self, seconds: float, steps: int, ends: bool, wanted: float) -> None:
        """What a stretch of at least one step took alone; with a measurement, if it ends a round."""
        self.seconds = seconds / steps
        # A measurement may be what made it long, and a first call's own time what made its steps look slow: the next
        # one then tells more.
        known = seconds <= wanted if ends else seconds >= wanted / 2 or self._ended
        if known:
            self._timed = time.monotonic()
        self._ended = ends and not known


def _health(lane: int, tree: Tree, curves: dict[str, np.ndarray] | None, steps: Any) -> tuple[str, str | None]:
    """Whether a lane diverged, and when: a loss or a parameter that is not a finite number."""
    if curves is not None:
        lost = ~np.isfinite(curves["loss"][lane]) & (steps > 0)
        if lost.any():
            return "diverged", f"its loss is not a finite number from step {int(steps[lost.argmax()])} on"
    floats = [leaf[lane] for leaf in jax.tree.leaves(tree) if np.issubdtype(leaf.dtype, np.floating)]
    if not all(np.isfinite(leaf).all() for leaf in floats):
        return "diverged", "its parameters are not all finite numbers"
    return "ok", None


@contextlib.contextmanager
def preemption_notice() -> Iterator[Callable[[], bool]]:
    """Turns SIGTERM and ctrl-C into a question that the engine asks every few seconds. A second one stops at once."""
    told = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield told.is_set
        return

    def tell(number: int, frame: Any) -> None:
        if told.is_set() and number == signal.SIGINT:
            raise KeyboardInterrupt
        told.set()

    before = {number: signal.signal(number, tell) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield told.is_set
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
