"""Several processes as one program: how they start, agree, and leave together.

Every process runs the same command and computes the same plan; their devices form one mesh (`lanes.py`). What only one
of them knows (a signal, a clock, what it has stored) is exchanged through jax's coordination service, between hosts: no
device takes part, so an exchange neither waits for the programs that run nor is stuck behind them.
"""

import contextlib
import ctypes
import dataclasses
import functools
import importlib
import json
import os
import signal
import socket
import sys
import zlib
from collections.abc import Callable
from typing import Any, TypeVar

import jax

from subl_jax.errors import InputError, PeerLost, StorageError

PREEMPTED = 75
RESUME = "what was computed is stored; run the same command again to go on"
PEER_GONE = "another process of this run is gone"
T = TypeVar("T")

# After this long without a sign of life a process is taken for dead, and all others leave.
_HEARTBEAT_SECONDS = 20
_SHUTDOWN_SECONDS = 30
# The machines of a slice do not boot all at once.
_START_SECONDS = 300
# Longer than any round: a process that waits for a slower one is not to give up.
_PATIENCE_MS = 7 * 24 * 3600 * 1000


@dataclasses.dataclass(frozen=True)
class Options:
    """The command line's say. `distributed` None: on a TPU yes, elsewhere where `coordinator` is given.

    Raises:
      InputError: flags that contradict each other, or cannot be.
    """

    distributed: bool | None = None
    coordinator: str | None = None
    num_processes: int | None = None
    process_id: int | None = None

    def __post_init__(self) -> None:
        named = {name: getattr(self, name) for name in ("coordinator", "num_processes", "process_id")}
        missing = [f"--{name}" for name, value in named.items() if value is None]
        if len(missing) == 3:
            return
        if self.distributed is False:
            given = next(name for name, value in named.items() if value is not None)
            raise InputError(f"--nodistributed and --{given} contradict each other; leave one of them out")
        if missing:
            raise InputError(
                f"--coordinator HOST:PORT, --num_processes N and --process_id I go together; {missing[0]} is missing"
            )
        host, _, port = self.coordinator.rpartition(":")
        if not host or not port.isdigit() or not 0 < int(port) < 2**16:
            raise InputError(f"--coordinator={self.coordinator}: expected HOST:PORT, as in 10.0.0.2:8476")
        if self.num_processes < 1:
            raise InputError(f"--num_processes={self.num_processes}: expected 1 or more")
        if not 0 <= self.process_id < self.num_processes:
            raise InputError(f"--process_id={self.process_id}: expected 0 to {self.num_processes - 1}")


def start(options: Options) -> None:
    """Makes this process one of several, where the options or a TPU slice say so. Before jax looks at its devices.

    Raises:
      InputError: no cluster is found.
      PeerLost: the other processes could not be reached.
    """
    on_tpu = (jax.config.jax_platforms or "").startswith("tpu")  # set by jax itself where it finds chips
    asked = options.distributed or options.coordinator is not None
    if not asked and (options.distributed is False or not on_tpu):
        return
    if options.process_id == 0:
        _check_port(options.coordinator)
    # SIGTERM is a question that the processes ask each other between stretches; jax's own handler would take it away.
    jax.config.update("jax_enable_preemption_service", False)
    jax.config.update("jax_cpu_collectives_implementation", "gloo")
    _leave_on_abort(f"not all processes came within {_START_SECONDS} s")
    try:
        jax.distributed.initialize(
            options.coordinator,
            options.num_processes,
            options.process_id,
            # With all three given, no other cluster (a SLURM allocation around this shell) is looked for.
            cluster_detection_method="deactivate" if options.coordinator else None,
            initialization_timeout=_START_SECONDS,
            heartbeat_timeout_seconds=_HEARTBEAT_SECONDS,
            shutdown_timeout_seconds=_SHUTDOWN_SECONDS,
        )
    except ValueError:
        if not asked:  # a TPU of one worker
            _leave_on_abort(None)
            return
        raise InputError(
            "--distributed: no TPU slice, SLURM step, Open MPI or Kubernetes job found around this process; "
            "give --coordinator HOST:PORT, --num_processes N and --process_id I"
        ) from None
    except RuntimeError as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0][:200]
        raise PeerLost(f"cannot join the processes at {options.coordinator or 'this cluster'} ({reason})") from None
    _leave_on_abort(PEER_GONE)


def joined() -> bool:
    """Whether this process is one of a cluster."""
    return jax.distributed.is_initialized()


def leave(status: int) -> int:
    """Ends this process's part in the cluster, once all others do so too, and gives the status to exit with."""
    if joined():
        jax.distributed.shutdown()
    return status


def abandon(status: int) -> int:
    """Exits with `status` without waiting for others; they notice. Gives the status where there are no others."""
    if joined():
        sys.stdout.flush()
        sys.stderr.flush()
        # Threads and exit handlers (of jax, of orbax) would wait for processes that are gone.
        os._exit(status)
    return status


def _check_port(coordinator: str) -> None:
    """Raises InputError where process 0 cannot listen at its port: jax would crash."""
    port = int(coordinator.rpartition(":")[2])
    try:
        socket.create_server(("", port)).close()
    except OSError as error:
        line = f"--coordinator={coordinator}: cannot listen at port {port}: {os.strerror(error.errno)}; take another"
        raise InputError(line) from None


def _leave_on_abort(reason: str | None) -> None:
    """Makes an abort the resumable exit; without a reason, what it is by default.

    The coordination service's client aborts its process as soon as another one is lost. A handler in Python would only
    be noted for later, and `abort` does not come back; so it is set in C.
    """
    with contextlib.suppress(OSError):
        libc = ctypes.CDLL(None)
        libc.signal.argtypes, libc.signal.restype = [ctypes.c_int, ctypes.c_void_p], ctypes.c_void_p
        handler = None if reason is None else ctypes.cast(_on_abort(reason), ctypes.c_void_p)
        libc.signal(signal.SIGABRT, handler)


@functools.cache  # to be kept as long as the process lives
def _on_abort(reason: str) -> Any:
    def told(number: int) -> None:
        print(f"preempted: {reason}; {RESUME}", file=sys.stderr, flush=True)
        os._exit(PREEMPTED)

    return ctypes.CFUNCTYPE(None, ctypes.c_int)(told)


class Peers:
    """All processes of the program, this one among them. Every method is called by all, in the same order."""

    def __init__(self) -> None:
        self.index = jax.process_index()
        self.count = jax.process_count()
        self._exchanges = 0

    @property
    def leads(self) -> bool:
        """Whether this process writes what is written once: tables, report, tracker."""
        return self.index == 0

    def gather(self, value: Any) -> list[Any]:
        """The values of all processes (JSON), by process.

        Raises:
          PeerLost: one of them is gone.
        """
        if self.count == 1:
            return [value]
        number, self._exchanges = self._exchanges, self._exchanges + 1
        data = zlib.compress(json.dumps(value, default=lambda array: array.tolist()).encode())
        # jax has no public way to its key-value store; orbax goes the same way.
        client = importlib.import_module("jax._src.distributed").global_state.client
        try:
            client.key_value_set_bytes(f"{_place(number)}{self.index}", data)
            client.wait_at_barrier(f"subl_jax-{number}", _PATIENCE_MS)
            found = {
                int(key.rpartition("/")[2]): value for key, value in client.key_value_dir_get_bytes(_place(number))
            }
            # All have passed the barrier, and so have read what was exchanged before.
            if number:
                client.key_value_delete(f"{_place(number - 1)}{self.index}")
        except RuntimeError as error:
            raise PeerLost(PEER_GONE) from error
        return [json.loads(zlib.decompress(found[process])) for process in range(self.count)]

    def first(self, value: Any) -> Any:
        """The value of process 0."""
        return self.gather(value if self.leads else None)[0]

    def any(self, flag: bool) -> bool:
        """Whether it is so for one of the processes."""
        return any(self.gather(bool(flag)))

    def together(self, function: Callable[[], T]) -> T:
        """`function()`; if it fails for input or storage in one process, all raise that error."""
        result, trouble, own = None, None, None
        try:
            result = function()
        except (InputError, StorageError) as error:
            own, trouble = error, [isinstance(error, InputError), str(error)]
        for each in self.gather(trouble):
            if each is not None:
                raise own or (InputError if each[0] else StorageError)(each[1])
        return result


def _place(number: int) -> str:
    return f"subl_jax/{number}/"


@functools.cache
def peers() -> Peers:
    """The processes that this one computes with; exchanges are numbered, so there is one such object."""
    return Peers()
