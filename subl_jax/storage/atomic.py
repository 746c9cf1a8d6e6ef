"""Files that appear whole or not at all, on local disks and on object stores."""

import contextlib
import errno
import json
import os
import stat
import tempfile
import uuid
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from etils import epath

from subl_jax.errors import StorageError
from subl_jax.storage.retrying import patiently

if TYPE_CHECKING:
    import pandas as pd

# What the name of a file holds while it is being written; one left behind belongs to a killed process.
TEMPORARY = ".tmp"

_REMEDIES = {
    errno.ENOSPC: "free some space and run the same command again; what is stored is kept",
    errno.EDQUOT: "free some of the quota and run the same command again; what is stored is kept",
    errno.EACCES: "make it writable, or use another --workdir",
    errno.EPERM: "make it writable, or use another --workdir",
    errno.EROFS: "use a --workdir on a disk that can be written",
}


def is_local(path: epath.PathLike) -> bool:
    """Whether `path` is a file of this machine, and not of an object store (`gs://…`)."""
    return "://" not in os.fspath(path)


def storage_error(path: epath.PathLike, error: Exception, doing: str = "write") -> StorageError:
    """One line: the file, the reason, and what to do. `doing`: what could not be done to it."""
    number = getattr(error, "errno", None)
    reason = os.strerror(number) if number else (str(error).splitlines() or [type(error).__name__])[0]
    remedy = _REMEDIES.get(number, "once that is mended, run the same command again; what is stored is kept")
    return StorageError(f"cannot {doing} {os.fspath(path)}: {reason}; {remedy}")


@contextlib.contextmanager
def replacing(path: epath.PathLike) -> Iterator[epath.Path]:
    """A temporary local file to write to, which becomes `path` when the block ends without an error.

    A reader sees the old file or the new one. Locally the new one is on the disk, not in a buffer, when the block
    ends. The directory of `path` is made where it is missing.

    Raises:
      StorageError: the file could not be written; the old one, if any, is untouched.
    """
    path = epath.Path(path)
    temporary = None
    try:
        patiently(lambda: path.parent.mkdir(parents=True, exist_ok=True))
        directory = path.parent if is_local(path) else epath.Path(tempfile.gettempdir())
        temporary = directory / f"{path.name}{TEMPORARY}-{uuid.uuid4().hex[:12]}"
        temporary.touch(exist_ok=False)
        mode = stat.S_IMODE(os.stat(temporary).st_mode)
        yield temporary
        # A library may have put a file of its own, readable by its owner only, in place of the one made above.
        os.chmod(temporary, mode)
        if is_local(path):
            _to_disk(temporary)
            patiently(lambda: os.replace(temporary, path))
            # The file is in place: from here nothing may fail. Some file systems cannot sync a directory.
            with contextlib.suppress(OSError):
                _to_disk(path.parent)
        else:
            _upload(temporary, path)
    except OSError as error:
        raise error if isinstance(error, StorageError) else storage_error(path, error) from error
    except Exception as error:
        # An object store's client raises errors of its own kind; what the caller's block raised is the caller's.
        if temporary is not None:
            raise
        raise storage_error(path, error) from error
    finally:
        if temporary is not None:
            with contextlib.suppress(OSError):
                temporary.unlink(missing_ok=True)


def write_bytes_atomic(path: epath.PathLike, data: bytes) -> None:
    """Writes `data` to `path`. Raises StorageError."""
    with replacing(path) as temporary:
        temporary.write_bytes(data)


def write_json_atomic(path: epath.PathLike, value: Any) -> None:
    """Writes `value` as indented JSON; numpy scalars and arrays become numbers and lists. Raises StorageError."""
    text = json.dumps(value, indent=1, default=lambda array: array.tolist())
    write_bytes_atomic(path, text.encode() + b"\n")


def write_parquet_atomic(path: epath.PathLike, df: "pd.DataFrame") -> None:
    """Writes a table without its index. Raises StorageError."""
    with replacing(path) as temporary:
        df.to_parquet(os.fspath(temporary), index=False)


def read_parquet(path: epath.Path) -> "pd.DataFrame":
    """The table in a file. Waits for storage that fails for a moment; other errors are those of pandas."""
    import pandas as pd

    def read() -> pd.DataFrame:
        with path.open("rb") as file:
            return pd.read_parquet(file)

    return patiently(read)


def _to_disk(path: epath.Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _upload(source: epath.Path, path: epath.Path) -> None:
    """Object stores show an object only once it is complete, so one copy is atomic."""
    try:
        patiently(lambda: source.copy(path, overwrite=True))
    except Exception as error:  # each store's client raises errors of its own kind
        raise storage_error(path, error) from error
