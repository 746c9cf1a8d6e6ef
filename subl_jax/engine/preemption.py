"""Signals that the machine is going away, as a question."""

import contextlib
import signal
import threading
from collections.abc import Callable, Iterator
from typing import Any


@contextlib.contextmanager
def preemption_notice() -> Iterator[Callable[[], bool]]:
    """Turns SIGTERM and ctrl-C into a question that the engine asks every few seconds. A second one stops at once."""
    noticed = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield noticed.is_set
        return

    def handle(number: int, frame: Any) -> None:
        if noticed.is_set() and number == signal.SIGINT:
            raise KeyboardInterrupt
        noticed.set()

    before = {number: signal.signal(number, handle) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield noticed.is_set
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
