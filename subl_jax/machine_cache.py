"""What was measured on this machine, remembered in the user's cache folder from one sweep to the next."""

import hashlib
import json
import os
import pathlib
import platform
from typing import Any

import jax
import platformdirs

from subl_jax import __version__


def folder() -> pathlib.Path:
    """Where what is known of this machine is kept; `SUBL_JAX_CACHE` moves it."""
    return pathlib.Path(os.environ.get("SUBL_JAX_CACHE") or platformdirs.user_cache_dir("subl_jax"))


def recall(file: str, what: str) -> Any:
    """What was remembered of `what`, on a machine with these devices; None if nothing was."""
    return _read(file).get(_key(what))


def remember(file: str, what: str, entry: Any) -> None:
    """A cache that cannot be written costs the measurement again, no more."""
    path = folder() / file
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = path.with_suffix(f".tmp-{os.getpid()}")
        temporary.write_text(json.dumps({**_read(file), _key(what): entry}, indent=1))
        temporary.replace(path)
    except OSError:
        return


def _read(file: str) -> dict[str, Any]:
    try:
        entries = json.loads((folder() / file).read_text())
        return entries if isinstance(entries, dict) else {}
    except (OSError, ValueError):
        return {}


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
