"""What is free, what was used, and which errors mean that there was too little."""

import subprocess
import sys

import jax
import psutil
import pytest

from subl_jax.errors import OutOfMemory
from subl_jax.runtime import memory


class Device:
    def __init__(self, **stats):
        self._stats = stats

    def memory_stats(self):
        return self._stats or None


USED = """
from subl_jax.runtime import memory
print(memory.peak())
kept = bytearray(2**29)
print(memory.peak())
"""


def test_cpu_devices_share_what_the_machine_has():
    whole, half = memory.free(1), memory.free(2)
    assert 2**26 < half < whole
    # In a process of its own, as this one has used more. Its first peak may be this one's: the system hands it down.
    done = subprocess.run([sys.executable, "-c", USED], capture_output=True, text=True, check=True)
    before, after = map(int, done.stdout.split())
    assert before > 2**24 and after >= max(before, 2**29)
    assert after < psutil.virtual_memory().total


def test_accelerators_say_what_they_have(monkeypatch):
    devices = [
        Device(bytes_limit=100, bytes_in_use=40, peak_bytes_in_use=70),
        Device(bytes_limit=100, bytes_in_use=10, peak_bytes_in_use=90),
    ]
    monkeypatch.setattr(jax, "local_devices", lambda: devices)
    assert memory.free(2) == 60 and memory.peak() == 90


@pytest.mark.parametrize(
    "error",
    [
        jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory while trying to allocate 1 bytes.\nmore"),
        jax.errors.JaxRuntimeError("INTERNAL: CUDA_ERROR_OUT_OF_MEMORY: out of memory"),
        MemoryError(),
    ],
)
def test_a_full_device_is_told_in_one_line(error):
    with pytest.raises(OutOfMemory) as found, memory.noticed(final=True):
        raise error
    assert found.value.final and str(found.value) and "\n" not in str(found.value)


@pytest.mark.parametrize("error", [jax.errors.JaxRuntimeError("INVALID_ARGUMENT: no"), ValueError("out of memory")])
def test_other_errors_stay_what_they_are(error):
    with pytest.raises(type(error)) as found, memory.noticed():
        raise error
    assert found.value is error
