"""Finished batches are written behind the computation of the next ones."""

import concurrent.futures
import contextlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from subl_jax.errors import Preempted, StorageError
from subl_jax.runtime import cluster
from subl_jax.storage.store import Row, Store


class Writer:
    """One background thread, which does one job after the other."""

    def __init__(self) -> None:
        self._executor = concurrent.futures.ThreadPoolExecutor(1, thread_name_prefix="writer")
        self._jobs: list[concurrent.futures.Future[Any]] = []

    def add(self, job: Callable[[], Any]) -> None:
        """Does `job()` once those before it are done."""
        self._jobs.append(self._executor.submit(job))

    @property
    def done(self) -> bool:
        return all(job.done() for job in self._jobs)

    def wait(self) -> Any:
        """Returns, when all jobs are done, what the last one gave. Raises what the first that failed raised."""
        jobs, self._jobs = self._jobs, []
        concurrent.futures.wait(jobs)
        return [job.result() for job in jobs][-1] if jobs else None


class WriteBehind:
    """Stores one batch while the next one is computed. All processes call its methods together, in the same order.

    A batch that has been handed over may not be on the disk yet, but all processes know its rows (`row`).
    """

    def __init__(self, store: Store) -> None:
        self._peers = cluster.peers()
        self._store = store
        self._writer = Writer()
        self._fresh: dict[str, Row] = {}  # of the batch that was handed over; the same in all processes
        self._then: Callable[[], None] | None = None  # what is done once that batch is stored

    @contextlib.contextmanager
    def writing(self) -> Iterator[None]:
        """When the block ends, all that was computed in it is stored, or the error says what is not."""
        try:
            yield
        except BaseException as error:
            # The first error is the one that counts; the batch that is being written is still given its time. Of
            # several processes the others may not be here: what they all have stored is then tracked and tidied up by
            # the next run.
            with contextlib.suppress(StorageError):
                if self._peers.count == 1 or isinstance(error, Preempted):
                    self.settle()
                self._writer.wait()
            raise
        self.settle()
        self._peers.together(self._writer.wait)

    def hand_over(
        self, rows: Sequence[Row], put: Callable[[], dict[str, Any] | None], then: Callable[[], None]
    ) -> None:
        """Writes a batch behind what comes next: this process's rows by `put`, and when all have theirs, `then`."""
        self.settle()
        self._fresh = {row.key: row for row in rows}
        self._then = then
        self._writer.add(put)

    @property
    def written(self) -> bool:
        """Whether this process's rows of a batch that was handed over are on the disk. Called by any process alone."""
        return self._then is not None and self._writer.done

    def settle(self) -> None:
        """Returns when the batch that was handed over is stored, and known to all processes."""
        then, self._then = self._then, None
        if then is None:
            return
        self._fresh = {}
        self.store_now(self._writer.wait)
        self._writer.add(then)

    def store_now(self, put: Callable[[], dict[str, Any] | None]) -> None:
        """Stores what each process has to store, and makes it known to all of them."""
        for entry in self._peers.gather(self._peers.together(put)):
            if entry is not None:
                self._store.adopt(entry)

    def is_fresh(self, key: str) -> bool:
        """Whether the node is of a batch that may not be on the disk yet."""
        return key in self._fresh

    def row(self, key: str) -> Row:
        """A node that is stored, or is being stored."""
        return self._fresh.get(key) or self._store.row(key)
