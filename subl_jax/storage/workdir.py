"""The directory that a sweep's results go to: made, written to, and held by one process at a time."""

import contextlib
import os
import uuid
import warnings
from collections.abc import Iterator

import filelock
from etils import epath

from subl_jax.errors import InputError
from subl_jax.storage.atomic import TEMPORARY, is_local, storage_error
from subl_jax.storage.retrying import patiently


def open_workdir(path: epath.PathLike) -> epath.Path:
    """The directory, made where it is missing.

    Raises:
      InputError: it cannot be made or written to.
    """
    try:
        workdir = epath.Path(path).expanduser()
        patiently(lambda: workdir.mkdir(parents=True, exist_ok=True))
        probe = workdir / f".probe{TEMPORARY}-{uuid.uuid4().hex[:12]}"
        patiently(lambda: probe.write_bytes(b""))
        patiently(lambda: probe.unlink(missing_ok=True))
    except Exception as error:  # an object store's client raises errors of its own kind
        reason = getattr(error, "strerror", None) or (str(error).splitlines() or [type(error).__name__])[0]
        raise InputError(f"--workdir {os.fspath(path)}: {reason}; give a directory that can be written to") from None
    return workdir


@contextlib.contextmanager
def lock(workdir: epath.PathLike) -> Iterator[None]:
    """Holds `workdir` for this process; the system lets go of it however the process ends.

    Object stores have no locks: there, two sweeps in one directory compute some nodes twice, and are otherwise safe.

    Raises:
      InputError: another process holds it.
      StorageError: the lock file cannot be made.
    """
    if not is_local(workdir):
        yield
        return
    path = epath.Path(workdir) / ".lock"
    held = filelock.FileLock(os.fspath(path), timeout=0)
    try:
        with warnings.catch_warnings():  # without flock a file stands for the lock, which serves
            warnings.filterwarnings("ignore", message="flock not supported")
            held.acquire()
    except filelock.Timeout:
        raise InputError(
            f"--workdir {os.fspath(workdir)}: another sweep is running in it; wait for it or use another --workdir"
        ) from None
    except (OSError, NotImplementedError) as error:
        raise storage_error(path, error) from error
    try:
        yield
    finally:
        held.release()


def remove_leftovers(workdir: epath.Path) -> None:
    """Removes the files that killed processes left half written; those of `artifacts` are the store's."""
    if is_local(workdir):
        for folder in ("", "datasets", "figures"):
            for path in (workdir / folder).glob(f"*{TEMPORARY}-*"):
                if path.is_file():
                    path.unlink(missing_ok=True)
