"""How much memory there is for a program, and what it means when there was too little."""

import contextlib
import resource
import sys
from collections.abc import Iterator

import jax
import psutil

from subl_jax.errors import OutOfMemory
from subl_jax.runtime import container

_SIGNS = ("RESOURCE_EXHAUSTED", "out of memory", "Out of memory", "OOM")


def free(devices: int) -> int:
    """Bytes that each of so many devices of this process still has; CPU devices share what the container has."""
    reports = [device.memory_stats() for device in jax.local_devices()]
    if all(report and "bytes_limit" in report for report in reports):
        return min(report["bytes_limit"] - report.get("bytes_in_use", 0) for report in reports)
    there, left = psutil.virtual_memory().available, container.memory_left()
    return (there if left is None else min(there, left)) // devices


def peak() -> int:
    """The most bytes that were in use at a time: on the fullest device, or on CPUs of the whole process."""
    reports = [device.memory_stats() for device in jax.local_devices()]
    if all(report and "peak_bytes_in_use" in report for report in reports):
        return max(report["peak_bytes_in_use"] for report in reports)
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


@contextlib.contextmanager
def noticed(final: bool = False) -> Iterator[None]:
    """Makes the errors of a full device `OutOfMemory`; `final` where fewer lanes would need as much."""
    try:
        yield
    except (jax.errors.JaxRuntimeError, MemoryError) as error:
        if isinstance(error, MemoryError) or any(sign in str(error) for sign in _SIGNS):
            line = next(iter(str(error).splitlines()), "") or type(error).__name__
            raise OutOfMemory(line[:200], final) from None
        raise


class Watch:
    """Notes that a device is full instead of raising it: in a program of several processes all have to act on it."""

    def __init__(self) -> None:
        self.line = ""  # how a device ran out of memory

    @contextlib.contextmanager
    def noted(self) -> Iterator[None]:
        """What does not fit ends the block, and no more."""
        try:
            with noticed():
                yield
        except OutOfMemory as error:
            self.line = str(error)
