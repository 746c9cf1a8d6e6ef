"""One batch of lanes, from its inputs to the store.

Read `Batch.run` and `_train` first: they are the loop that all else serves. A batch takes its rounds in *stretches*: a
round, or as many steps of one as take a few seconds, so that the host may look up in between.
"""

import collections
import contextlib
import dataclasses
import functools
import time
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
import numpy as np
from etils import epath

from subl_jax import specs
from subl_jax.engine import lanes
from subl_jax.engine import nodes as asked
from subl_jax.engine.deaths import Deaths
from subl_jax.engine.delivery import Delivery
from subl_jax.engine.inputs import Inputs
from subl_jax.engine.observers import Display
from subl_jax.engine.pace import Pace
from subl_jax.engine.plan import Group
from subl_jax.engine.profile import Profiler
from subl_jax.engine.progress import BatchProgress
from subl_jax.engine.records import Record, Records, Results, named_metrics
from subl_jax.engine.retention import Retention
from subl_jax.engine.saves import Saves
from subl_jax.engine.settings import Settings
from subl_jax.engine.timing import Stopwatch
from subl_jax.engine.writer import WriteBehind
from subl_jax.errors import OutOfMemory, PeerLost, Preempted
from subl_jax.runtime import cluster, memory
from subl_jax.storage import datasets
from subl_jax.storage.store import Row, Store

Tree = Any


@dataclasses.dataclass(frozen=True)
class Services:
    """What every batch is handed."""

    workdir: epath.Path
    settings: Settings
    store: Store
    inputs: Inputs
    behind: WriteBehind
    delivery: Delivery
    retention: Retention
    deaths: Deaths
    display: Display
    profiler: Profiler
    preempted: Callable[[], bool]


class Stretch(NamedTuple):
    """Steps of one call.

    ends: the round, with a measurement. alone: nothing else is on the device before or behind it. timed: for the pace.
    traced: a profile may be of it.
    """

    steps: int
    ends: bool
    alone: bool
    timed: bool
    traced: bool


class Agreed(NamedTuple):
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


class Course:
    """Where a batch is in its rounds. The steps of each round are known from the start."""

    def __init__(self, rounds: list[int]) -> None:
        self.rounds = rounds
        self._round = 0
        self._within = 0  # steps of this round so far

    def restore(self, rounds: int, steps: int) -> None:
        """So many whole rounds are done, and steps in all."""
        self._round, self._within = rounds, steps - sum(self.rounds[:rounds])

    def advance(self, stretch: Stretch) -> None:
        self._round, self._within = (
            (self._round + 1, 0) if stretch.ends else (self._round, self._within + stretch.steps)
        )

    @property
    def over(self) -> bool:
        return self._round == len(self.rounds)

    @property
    def last(self) -> bool:
        return self._round + 1 == len(self.rounds)

    @property
    def left(self) -> int:
        """Steps of this round."""
        return self.rounds[self._round] - self._within

    @property
    def in_whole_rounds(self) -> int:
        """Steps of all rounds that are over."""
        return sum(self.rounds[: self._round])


class Batch:
    """One batch of lanes. Each process has the records and results of its own lanes.

    waited: runs while the host waits for the device.
    """

    def __init__(
        self,
        services: Services,
        group: Group,
        program: lanes.Program,
        nodes: list[specs.Node],
        pace: Pace,
        waited: Stopwatch,
    ) -> None:
        self._services = services
        self._peers = cluster.peers()
        self._group = group
        self._program = program
        self._nodes = nodes
        self._own = nodes[program.own]
        self._pace = pace
        self._waited = waited
        self._full = memory.Watch()
        self._records = Records(group, self._own)
        self._course = Course(group.stage.rounds(nodes[0]))
        self._progress = BatchProgress(services.display)
        self._saves = Saves(services.workdir, group, nodes, program, services.display.warn)
        self._saved_at = 0.0
        self._tracked = services.delivery.watched(nodes)
        self._steps = 0  # that are known to be done
        self._running: collections.deque[tuple[Stretch, Tree]] = collections.deque()  # on the device, with its record
        self.not_needed = 0  # lane-steps that were restored, or turned out not to be needed, once the batch has ended

    def run(self) -> None:
        """Computes the batch, and has it stored behind the next one.

        Raises:
          Preempted: one process is to stop; what ran is saved.
          OutOfMemory: a device of some process is full, in all of them; nothing is stored.
        """
        with self._closing(), self._services.deaths.noticed(self._group.form, self._nodes, self._program.layout):
            if self._peers.leads:
                self._services.delivery.start(self._nodes)
            arguments = self._arguments()
            state = self._restored()
            if state is None and not self._full.line:
                with self._full.noted():
                    state = self._program.start(arguments)
            self._saved_at = time.monotonic()
            state = self._train(arguments, state)
            self._store(state)

    def _train(self, arguments: Tree, state: Tree) -> Tree:
        """Dispatch, fetch, agree, save, in this order, until the rounds are over or nobody needs more of them."""
        agreed = self._agree()  # in all processes, as all that follows: is the device full, how much is restored
        self._progress.begins()
        if agreed.preempted:
            raise Preempted
        while not (self._course.over or agreed.enough or agreed.reached):
            stretch = self._next(agreed)
            if stretch.alone:
                self._fetch()
            began = time.perf_counter()
            # Dispatch comes before the fetch: the device computes this stretch while the host looks at the one before.
            state = self._dispatch(arguments, state, stretch)
            self._fetch(leave=0 if stretch.alone else 1)
            # Lanes that have their target take no time, those of the next batch do.
            if stretch.timed and not self._full.line and not self._records.any_reached:
                wanted = self._services.settings.stretch_seconds
                self._pace.took(time.perf_counter() - began, stretch.steps, stretch.ends, wanted)
            if self._full.line:
                self._agree()  # raises, here and in the processes whose devices are not full
            self._course.advance(stretch)
            if self._records.collects and self._course.in_whole_rounds >= self._nodes[0].size:
                # This round may be the last one needed, and another costs more than the wait. Processes that have
                # padding alone wait too: all agree on what comes next equally often.
                self._fetch()
            # Agreeing comes after the fetch, whose records it is about, and before the save, which all make or none.
            due = time.monotonic() - self._saved_at > self._services.settings.checkpoint_seconds
            agreed = self._agree(due)
            if (agreed.due and not self._course.over) or agreed.preempted:
                agreed = self._save(state)
        self._fetch()
        if agreed.reached and len(self._records.history) < len(self._course.rounds):
            state = self._last_measured(arguments, state)
        return state

    # --- before ---

    @contextlib.contextmanager
    def _closing(self) -> Iterator[None]:
        """However the block ends, no thread goes on writing saves."""
        try:
            yield
        except PeerLost:
            raise  # a save that runs waits for the process that is gone
        except BaseException as error:
            self._saves.close()
            if isinstance(error, OutOfMemory):
                self._progress.taken_back()
            raise

    def _arguments(self) -> Tree:
        def put() -> Tree:
            with self._full.noted():
                return self._services.inputs.arguments(self._nodes, self._program)

        self._services.inputs.await_stored(self._nodes)
        return self._peers.together(put)

    def _restored(self) -> Tree | None:
        """The state to go on from, where an earlier run has left one."""
        restored = self._saves.restore()
        if restored is None:
            return None
        self._steps, state, history = restored
        self._records.restored(history)
        self._course.restore(len(history), self._steps)
        return state

    # --- the loop's parts ---

    def _next(self, agreed: Agreed) -> Stretch:
        whole = asked.whole(self._nodes[0])
        left = self._course.left
        steps = left if whole else min(left, agreed.stretch)
        ends = steps == left
        alone = agreed.alone and steps > 0 and not whole
        last = ends and self._course.last
        timed = alone and agreed.old and not last
        # A trace costs time, and is of training: not of what is timed, or only measured where there is more to come.
        return Stretch(steps, ends, alone, timed, traced=not timed and (steps > 0 or last))

    def _dispatch(self, arguments: Tree, state: Tree, stretch: Stretch) -> Tree:
        """Gives the state after the stretch, which may still be on its way."""
        call = functools.partial(self._program.advance, arguments, state, stretch.steps, stretch.ends)
        with self._full.noted():
            # On some devices the call itself computes, or waits until the stretch before is done.
            with self._waited.running():
                state, record = self._services.profiler.traced(self._group, stretch.steps, stretch.traced, call)
            self._running.append((stretch, record))
        return state

    def _fetch(self, leave: int = 0) -> None:
        """Brings records to the host, which waits for the device, until so many stretches are left there."""
        while len(self._running) > leave:
            stretch, record = self._running.popleft()
            with self._waited.running(), self._full.noted():
                record = lanes.own_rows(record)
            if self._full.line:
                return
            self._steps += stretch.steps
            if stretch.ends:
                self._records.take(self._group.nodes[0].world.scored(record))

    def _agree(self, due: bool = False) -> Agreed:
        """What all processes are to do next; the leading one shows and tracks the rounds taken since the last time.

        Raises:
          OutOfMemory: a device is full, of whatever process.
        """
        services, records = self._services, self._records
        before, news = records.news()
        said = self._peers.gather(
            {
                "preempted": services.preempted(),
                "due": due,
                "full": self._full.line,
                "stretch": self._pace.steps(services.settings.stretch_seconds),
                "old": self._pace.is_old,
                # No other is dispatched behind a step that is too long by itself: a notice would wait for both.
                "alone": self._pace.is_old or self._pace.seconds > services.settings.stretch_seconds,
                "written": services.behind.written,
                "enough": records.enough,
                "reached": records.all_reached,
                "kept": records.kept,
                "metrics": news if self._tracked else [],
            }
        )
        full = next((each["full"] for each in said if each["full"]), None)
        if full:
            raise OutOfMemory(full)
        if all(each["written"] for each in said):
            services.behind.settle()
        kept = sum(each["kept"] for each in said)
        self._progress.at(kept if records.collects else self._steps * len(self._nodes))
        if self._peers.leads and self._tracked:
            self._track(before, [each["metrics"] for each in said])
        return Agreed(
            preempted=any(each["preempted"] for each in said),
            due=said[0]["due"],
            stretch=said[0]["stretch"],
            alone=said[0]["alone"],
            old=said[0]["old"],
            enough=records.collects and all(each["enough"] for each in said),
            reached=all(each["reached"] for each in said),
        )

    def _track(self, before: int, news: list[list[Record]]) -> None:
        """news: of each process, the rounds after the first `before`."""
        for i in range(len(news[0])):
            parts = [of_process[i] for of_process in news if len(of_process[i]["loss"])]
            joined = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
            step = sum(self._course.rounds[: before + i + 1])
            self._services.delivery.log(self._nodes, step, named_metrics(self._nodes[0].world, joined))

    def _save(self, state: Tree) -> Agreed:
        """Saves what is computed so far, and stops if one process is to."""
        if self._running:
            self._fetch()
            self._agree()  # a stretch whose record is lost must not be saved
        self._saves.save(self._steps, state, self._records.history)
        self._saved_at = time.monotonic()
        self._services.deaths.saved()
        agreed = self._agree()  # the signal may have come while the save was made
        if agreed.preempted:
            raise Preempted
        return agreed

    # --- after ---

    def _last_measured(self, arguments: Tree, state: Tree) -> Tree:
        """Ends a batch whose lanes all stay as they are: one measurement is that of all rounds that are left."""
        state = self._dispatch(arguments, state, Stretch(steps=0, ends=True, alone=True, timed=False, traced=True))
        self._fetch()
        if not self._full.line:
            history, rounds = self._records.history, self._course.rounds
            while len(history) < len(rounds):
                self._records.take(history[-1])
            self._progress.spared((sum(rounds) - self._steps) * len(self._nodes))
            self._steps = sum(rounds)
        return state

    def _store(self, state: Tree) -> None:
        """Hands the results over to be written, while the next batch is computed."""
        services, all_steps = self._services, sum(self._course.rounds)
        results: Results | None = None
        if self._own and not self._full.line:
            with self._full.noted():
                results = self._results(state)
        # Results that did not fit on the host of one process are stored by none.
        self._agree()
        begun = self._progress.earlier // len(self._nodes)
        facts = [[row.key, row.status, row.why, row.info] for row in results.rows] if results else []
        said = self._peers.gather({"rows": facts, "spared": self._records.spared(all_steps, begun)})
        self.not_needed = self._progress.earlier + sum(each["spared"] for each in said)

        def then() -> None:
            # Only what is stored, by all processes, is finished in the trackers and needs no save any more.
            if self._peers.leads:
                services.delivery.finish(self._nodes)
            self._saves.remove()

        put = functools.partial(self._put, results) if results else lambda: None
        services.behind.hand_over([Row(key, None, *rest) for each in said for key, *rest in each["rows"]], put, then)
        self._peers.together(self._saves.close)

    def _results(self, state: Tree) -> Results:
        """Brings the results to the host."""
        if self._records.collects:
            return self._records.of_datasets()
        with self._waited.running():
            rows = lanes.own_rows(self._group.stage.artefact(state))
        return self._records.of_models(jax.tree.map(lambda x: x[: len(self._own)], rows), self._course.rounds)

    def _put(self, results: Results) -> dict[str, Any]:
        """Writes them; in the writer's thread. The rows come last: they say that the rest is there."""
        services, (rows, tree, curves, steps) = self._services, results
        for i, collector in enumerate(self._records.collectors):  # only datasets have them
            hashes = datasets.write(services.workdir, rows[i].key, collector.table())
            rows[i] = dataclasses.replace(rows[i], info=rows[i].info | hashes)
        bare = all(services.retention.drops(node) for node in self._own)
        return services.store.put(self._group.stage.name, rows, tree, curves, steps, bare=bare)
