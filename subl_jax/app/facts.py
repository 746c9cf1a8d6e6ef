"""What one needs to know to repeat a sweep: versions, devices, git revision."""

import contextlib
import importlib.metadata
import platform
import subprocess
from typing import Any

import jax
from etils import epath

from subl_jax import __version__

_PACKAGES = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "numpy", "ml-collections", "wandb")


def machine() -> dict[str, Any]:
    """Versions, devices and git revision: what one needs to know to repeat a sweep."""
    return {
        "versions": {"subl_jax": __version__, "python": platform.python_version(), **installed(*_PACKAGES)},
        "devices": [f"{device.platform}:{device.device_kind}" for device in jax.devices()],
        "git": _git_revision(),
    }


def installed(*packages: str) -> dict[str, str]:
    """The versions of those packages that there are."""
    found = {}
    for name in packages:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            found[name] = importlib.metadata.version(name)
    return found


def _git_revision() -> str | None:
    here = epath.Path(__file__).parent
    command = ["git", "-C", str(here), "describe", "--always", "--dirty", "--abbrev=40"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=10, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() or None
