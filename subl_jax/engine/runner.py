"""The groups of a plan, one after the other, each in batches of lanes (`batch.py`)."""

import pathlib
from collections.abc import Callable, Sequence

from etils import epath

from subl_jax import specs
from subl_jax.engine import lanes, saves
from subl_jax.engine import nodes as asked
from subl_jax.engine.batch import Batch, Services
from subl_jax.engine.deaths import Deaths
from subl_jax.engine.delivery import Delivery
from subl_jax.engine.inputs import Inputs
from subl_jax.engine.observers import Display, GroupInfo, Tracker
from subl_jax.engine.pace import Paces
from subl_jax.engine.plan import Group, Plan
from subl_jax.engine.profile import Profiler
from subl_jax.engine.programs import Programs
from subl_jax.engine.retention import Retention
from subl_jax.engine.settings import Settings
from subl_jax.engine.timing import GroupClock, GroupTiming
from subl_jax.engine.writer import WriteBehind
from subl_jax.errors import OutOfMemory, Preempted
from subl_jax.runtime import cluster
from subl_jax.storage.store import Store

# Computes groups on other machines, and calls back with the nodes that it finds stored, and with the timing of each
# group that has ended: (groups, stored, ended) → timings.
Elsewhere = Callable[
    [Sequence[Group], Callable[[Sequence[specs.Node]], None], Callable[[GroupTiming], None]], list[GroupTiming]
]


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
        display: Display,
        preempted: Callable[[], bool] = lambda: False,
        profile: pathlib.Path | None = None,
    ) -> None:
        behind = WriteBehind(store)
        inputs = Inputs(store, behind)
        self._peers = cluster.peers()
        self._store = store
        self._services = Services(
            workdir=workdir,
            settings=settings,
            store=store,
            inputs=inputs,
            behind=behind,
            delivery=Delivery(tracker, sweep, store),
            retention=Retention(store, behind),
            deaths=Deaths(workdir),
            display=display,
            profiler=Profiler(profile, display),
            preempted=preempted,
        )
        self._programs = Programs(settings, inputs, display)
        self._paces = Paces()
        self.writing = behind.writing

    def compute(
        self, plan: Plan, elsewhere: Elsewhere | None = None, ended: Callable[[GroupTiming], None] = lambda timing: None
    ) -> list[GroupTiming]:
        """Computes every pending node, in this process or `elsewhere`. `ended` is called as each group has ended.

        Raises:
          Preempted: `preempted` said so; what finished is stored, and what ran is saved.
          StorageError: results could not be written; what was stored before is kept.
        """
        services = self._services
        services.delivery.expect([row for row in plan.rows if row.row == "runs"])
        if self._peers.leads:
            services.delivery.stored(list(plan.reused.values()))
        services.retention.expect(plan, services.settings.keep)
        if elsewhere is not None:
            timings = elsewhere(plan.groups, self._stored, ended)
        else:
            services.display.plan(len(plan.groups))
            services.profiler.choose(plan.groups)
            timings = []
            with self.writing():
                for group in plan.groups:
                    timings.append(self.run_group(group))
                    ended(timings[-1])
                    services.retention.done(group.nodes)
        services.retention.done(())  # what could not go yet, as the last batch was being written
        saves.remove_all(services.workdir)
        services.deaths.remove_all()
        return timings

    def run_group(self, group: Group) -> GroupTiming:
        """Computes the nodes of one group within `writing`; its inputs are stored. Raises as `compute`."""
        services = self._services
        nodes = self._computable(group)
        self._programs.hold(group, max(len(nodes), 1), services.deaths.most(group.form))
        layout = self._programs.default_layout(max(len(nodes), 1), group.form)
        stage, work = group.stage, group.work * len(nodes)
        services.display.begin(GroupInfo(stage.name, len(group.nodes), stage.makes, work, stage.unit, str(layout)))
        if not nodes:
            services.display.end("none of its inputs are there")
            return GroupTiming(group.stage.name, len(group.nodes), "none")

        services.display.compiling()
        clock = GroupClock(group, len(nodes))
        left = {node.key: node for node in nodes}
        while left:
            with clock.getting():
                program = self._programs.fitting(group, list(left.values()))
                # Programs can take as long to compile as a machine has left.
                if self._peers.any(services.preempted()):
                    raise Preempted
            clock.compiled(program)
            services.display.advance(0)
            try:
                for batch in self._batches(group, list(left.values()), program):
                    self._run_batch(group, program, batch, clock)
                    for node in batch:
                        del left[node.key]
            except OutOfMemory as error:
                # Batches that are done stay done; what is left is cut anew, by fewer lanes.
                self._programs.narrow(group, program.layout, error)
        timing = clock.timing(program, self._dtype(group))
        reached = f"{timing.ceiling_percent:.0f} % of what a matrix product reaches" if timing.ceiling_percent else ""
        services.display.end(f"{timing.bytes_peak / 2**30:.1f} GiB in use", reached)
        return timing

    def _computable(self, group: Group) -> list[specs.Node]:
        """The nodes whose inputs are all ok. The others are stored as failed, with the reason."""
        services = self._services
        alive, lost = services.inputs.split(group)
        if lost:
            rows = list(lost.values())
            services.behind.store_now(lambda: self._store.put(group.stage.name, rows) if self._peers.leads else None)
            if self._peers.leads:
                services.delivery.stored([node for node in group.nodes if node.key in lost])
        return alive

    def _batches(self, group: Group, nodes: list[specs.Node], program: lanes.Program) -> list[list[specs.Node]]:
        def room(count: int) -> int:
            return self._programs.default_layout(count, group.form).lanes

        return saves.cut(self._services.workdir, group, nodes, program.layout.lanes, room)

    def _run_batch(self, group: Group, program: lanes.Program, nodes: list[specs.Node], clock: GroupClock) -> None:
        # It may have been stored by another machine, which died after it.
        if self._peers.any(self._store.has_batch([node.key for node in nodes])):
            clock.found(len(nodes))
            return
        program = self._programs.for_batch(group, program, nodes)
        batch = Batch(self._services, group, program, nodes, self._paces.of(group, program), clock.waited)
        batch.run()
        clock.computed(batch.not_needed)

    def _stored(self, nodes: Sequence[specs.Node]) -> None:
        """Another machine has stored these nodes."""
        self._services.delivery.stored(nodes)
        self._services.retention.done(nodes)

    def _dtype(self, group: Group) -> str:
        """What matrices are multiplied in."""
        bfloat16 = lanes.precision(self._services.settings.matmul) == lanes.precision("bfloat16")
        return "bfloat16" if bfloat16 else asked.dtype(group.nodes[0])
