"""What was measured on this machine, remembered in the user's cache folder from one sweep to the next."""

import contextlib
import hashlib
import json
import os
import pathlib
import platform
from typing import Any

import jax
import platformdirs

from subl_jax import __version__
from subl_jax.errors import StorageError
from subl_jax.storage import atomic


def folder() -> pathlib.Path:
    """Where what is known of this machine is kept; `SUBL_JAX_CACHE` moves it."""
    return pathlib.Path(os.environ.get("SUBL_JAX_CACHE") or platformdirs.user_cache_dir("subl_jax")).expanduser()


def recall(file: str, what: str) -> Any:
    """What was remembered of `what`, on a machine with these devices; None if nothing was."""
    return entries(file).get(_key(what))


def remember(file: str, what: str, entry: Any) -> None:
    """Keeps `entry` for `recall`."""
    add(file, _key(what), entry)


def entries(file: str) -> dict[str, Any]:
    """All that a file of the folder holds, by key; nothing where it is damaged."""
    try:
        found = json.loads((folder() / file).read_text(encoding="utf-8"))
        return found if isinstance(found, dict) else {}
    except (OSError, ValueError):
        return {}


def add(file: str, key: str, entry: Any) -> None:
    """A cache that cannot be written costs the work again, no more."""
    with contextlib.suppress(StorageError):
        atomic.write_json_atomic(folder() / file, {**entries(file), key: entry})


def _key(what: str) -> str:
    machine = [
        platform.machine(),
        platform.processor(),
        os.cpu_count(),
        sorted({device.device_kind for device in jax.local_devices()}),
        jax.local_device_count(),
        jax.process_count(),
    ]
    return hashlib.sha256(json.dumps([__version__, jax.__version__, machine, what]).encode()).hexdigest()[:32]
