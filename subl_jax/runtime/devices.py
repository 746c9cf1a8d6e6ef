"""The devices of this machine, made ready before jax first looks at them."""

import contextlib
import os

import jax

from subl_jax.runtime import machine_cache

# Compiling less than this is faster than looking it up.
_WORTH_CACHING_SECONDS = 0.5


def prepare() -> None:
    """One virtual CPU device per core, and a cache of compiled programs in the user's cache folder.

    A setting that the environment or the caller has made is left as it is. In a notebook that has used jax already the
    number of devices is what it is.
    """
    if "JAX_NUM_CPU_DEVICES" not in os.environ:
        with contextlib.suppress(RuntimeError):  # jax has started
            jax.config.update("jax_num_cpu_devices", _cores())
    if not jax.config.jax_compilation_cache_dir:
        jax.config.update("jax_compilation_cache_dir", str(machine_cache.folder() / "programs"))
        jax.config.update("jax_persistent_cache_min_compile_time_secs", _WORTH_CACHING_SECONDS)


def _cores() -> int:
    """Cores that this process may use, where the system tells."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
