"""What the devices of this machine can do at best: the rate of a large matrix product, measured, not looked up."""

import functools
import time

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec

from subl_jax.errors import OutOfMemory
from subl_jax.runtime import cluster, machine_cache, memory

_FILE = "ceilings.json"
# Large enough for the product to outweigh its start, small enough to take well under a second.
_SIZE, _SIZE_ON_CPU, _TIMES = 8192, 1024, 6


def flops_a_second(dtype: str) -> float:
    """Floating-point operations a second of all devices of all processes together, each with a product of its own.

    The best that was ever seen on this machine: a measurement beside other work comes out too low. 0 where a process
    has no memory to measure it, beside what the sweep holds. Called by all processes.
    """
    try:
        with memory.noticed():
            own = _of_process(dtype)
    except OutOfMemory:
        own = 0.0
    of_processes = cluster.peers().gather(own)
    return sum(of_processes) if all(of_processes) else 0.0


@functools.lru_cache(maxsize=4)
def _of_process(dtype: str) -> float:
    known = machine_cache.recall(_FILE, dtype)
    best = max(_measured(dtype), known if isinstance(known, float) else 0.0)
    machine_cache.remember(_FILE, dtype, best)
    return best


def _measured(dtype: str) -> float:
    count = jax.local_device_count()
    size = _SIZE_ON_CPU if jax.default_backend() == "cpu" else _SIZE
    mesh = jax.make_mesh((count,), ("lane",), devices=jax.local_devices())
    sharding = NamedSharding(mesh, PartitionSpec("lane"))
    square = jax.jit(lambda: jnp.ones((count, size, size), dtype), out_shardings=sharding)()

    def product(x: jax.Array) -> jax.Array:
        return jnp.matmul(x, x, precision="highest" if dtype == "float32" else None)

    whole = jax.shard_map(product, mesh=mesh, in_specs=PartitionSpec("lane"), out_specs=PartitionSpec("lane"))
    compiled = jax.jit(whole).lower(square).compile()
    jax.block_until_ready(compiled(square))
    seconds = []
    for _ in range(_TIMES):
        began = time.perf_counter()
        jax.block_until_ready(compiled(square))
        seconds.append(time.perf_counter() - began)
    return float(2.0 * count * size**3 / np.min(seconds))
