"""The devices of this machine, made ready before jax first looks at them."""

import collections
import contextlib
import math
import os
import pathlib
from collections.abc import Callable, Iterator
from typing import Any

import jax

from subl_jax.errors import InputError
from subl_jax.runtime import container, machine_cache

# Compiling less than this is faster than looking it up.
_WORTH_CACHING_SECONDS = 0.5
# Settings of jax that change results, or that stop programs which are as they should be: a loss of no steps is nan.
_NEEDED = {
    "jax_enable_x64": False,
    "jax_numpy_dtype_promotion": "standard",
    "jax_numpy_rank_promotion": "allow",
    "jax_debug_nans": False,
    "jax_debug_infs": False,
    "jax_disable_jit": False,
    "jax_default_prng_impl": "threefry2x32",
}
_NVIDIA = pathlib.Path("/dev/nvidia0")


def prepare() -> None:
    """One virtual CPU device per core, and a cache of compiled programs in the user's cache folder.

    A setting that the environment or the caller has made is left as it is. In a notebook that has used jax already the
    number of devices is what it is.
    """
    forced = "xla_force_host_platform_device_count" in os.environ.get("XLA_FLAGS", "")
    if "JAX_NUM_CPU_DEVICES" not in os.environ and not forced:
        with contextlib.suppress(RuntimeError):  # jax has started
            jax.config.update("jax_num_cpu_devices", cores())
    if not jax.config.jax_compilation_cache_dir:
        jax.config.update("jax_compilation_cache_dir", str(machine_cache.folder() / "programs"))
        jax.config.update("jax_persistent_cache_min_compile_time_secs", _WORTH_CACHING_SECONDS)


@contextlib.contextmanager
def usual_settings(warn: Callable[[str], None]) -> Iterator[None]:
    """Within the block, what keys of results take for granted: single precision, and no debugging that stops programs.

    What the environment or the caller has set otherwise is set aside with one line, and comes back.
    """
    others: dict[str, Any] = {
        name: value for name, usual in _NEEDED.items() if (value := getattr(jax.config, name)) != usual
    }
    if others:
        listing = ", ".join(f"{name.upper()}={value}" for name, value in others.items())
        warn(f"{listing}: set aside for this sweep, whose results do not depend on it")
    try:
        for name in others:
            jax.config.update(name, _NEEDED[name])
        yield
    finally:
        for name, value in others.items():
            jax.config.update(name, value)


def check() -> None:
    """Raises InputError where jax finds none of the devices that it is told to use. Starts jax."""
    asked = jax.config.jax_platforms
    try:
        jax.devices()
    except (RuntimeError, AssertionError) as error:
        reason = " ".join(str(error).split())[:200]
        line = f"JAX_PLATFORMS={asked}: jax finds no such device here" + (f" ({reason})" if reason else "")
        raise InputError(f"{line}; unset it or set it to cpu, or install 'subl_jax[cuda]' or 'subl_jax[tpu]'") from None


def described(nvidia: pathlib.Path = _NVIDIA) -> str:
    """All devices of all processes, in words: `8 NVIDIA H100`, `2 CPU`; and a GPU that jax leaves aside."""
    counts = collections.Counter("CPU" if device.platform == "cpu" else device.device_kind for device in jax.devices())
    text = ", ".join(f"{count} {kind}" for kind, count in counts.items())
    if jax.process_count() > 1:
        text += f" in {jax.process_count()} processes"
    if set(counts) == {"CPU"} and nvidia.exists() and jax.config.jax_platforms != "cpu":
        text += "; this machine has an NVIDIA GPU that jax does not find: pip install 'subl_jax[cuda]'"
    return text


def cores() -> int:
    """Cores that this process may use, where the system tells: those it is bound to, and a container's quota."""
    bound = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    quota = container.cpus()
    return bound if quota is None else max(1, min(bound, math.ceil(quota)))
