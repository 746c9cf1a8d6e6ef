"""Finished batches are written behind the computation of the next ones."""

import concurrent.futures
from collections.abc import Callable
from typing import Any


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
