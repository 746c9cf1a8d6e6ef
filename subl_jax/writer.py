"""Finished batches are written behind the computation of the next ones."""

import concurrent.futures
from collections.abc import Callable


class Writer:
    """One background thread with at most one job: handing over the next waits for it, so that memory stays bounded."""

    def __init__(self) -> None:
        self._executor = concurrent.futures.ThreadPoolExecutor(1, thread_name_prefix="writer")
        self._running: concurrent.futures.Future[None] | None = None

    def hand_over(self, job: Callable[[], None]) -> None:
        """Starts `job` once the one before it is done. Raises what that one raised."""
        self.wait()
        self._running = self._executor.submit(job)

    def wait(self) -> None:
        """Returns when all is written. Raises what the job raised."""
        running, self._running = self._running, None
        if running is not None:
            running.result()
