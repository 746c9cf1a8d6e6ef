"""Attention by cuDNN's fused kernel, which keeps scores out of memory (Dao et al. 2022, arXiv:2205.14135).

On a GPU to move scores, their softmax and its gradient takes longer than to compute them.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp
from jax.custom_batching import custom_vmap

_LARGEST_HEAD = 128
# Compute capability, of Hopper: where it has been tried. What the kernel takes differs between cards.
_TRIED = 9


def usable(dtype: str, head_dim: int) -> bool:
    """Whether the kernel is known to run on this machine's devices, with such heads."""
    if jax.default_backend() != "gpu" or dtype != "bfloat16" or head_dim % 8 or head_dim > _LARGEST_HEAD:
        return False
    device = jax.local_devices()[0]
    return device.device_kind.startswith("NVIDIA") and int(float(device.compute_capability)) == _TRIED


def attention(q: jax.Array, k: jax.Array, v: jax.Array, mask: jax.Array, scale: float) -> jax.Array:
    """softmax(scale q k') v, as `transformer.attention` computes it.

    q: (batch, length, heads, head_dim); k, v: (batch, slots, kv_heads, head_dim), bfloat16; mask: (batch or 1, 1,
    length, slots) bool. Returns (batch, length, heads, head_dim).
    """
    length, slots = q.shape[1], k.shape[1]
    mask = jnp.broadcast_to(mask, (len(q), 1, length, slots))
    # The kernel's backward pass wants even numbers of both.
    q, k, v = (jnp.pad(x, ((0, 0), (0, x.shape[1] % 2), (0, 0), (0, 0))) for x in (q, k, v))
    mask = jnp.pad(mask, ((0, 0), (0, 0), (0, length % 2), (0, slots % 2)))
    return _attended(scale, q, k, v, mask)[:, :length]


def _kernel(scale: float, q: jax.Array, k: jax.Array, v: jax.Array, mask: jax.Array) -> jax.Array:
    return jax.nn.dot_product_attention(q, k, v, mask=mask, scale=scale, implementation="cudnn")


def _with_lanes(function: Any) -> Any:
    """`function` of arrays with a batch axis, for which vmap makes this axis longer.

    The kernel's own rule for vmap takes no mask that lanes share, nor one that heads share.
    """
    made = custom_vmap(function)

    @made.def_vmap
    def rule(size: int, batched: list[bool], *arrays: jax.Array) -> tuple[Any, Any]:
        pairs = zip(arrays, batched, strict=True)
        each = [x if has else jnp.broadcast_to(x, (size, *x.shape)) for x, has in pairs]
        results = made(*(x.reshape(-1, *x.shape[2:]) for x in each))
        folded = jax.tree.map(lambda x: x.reshape(size, -1, *x.shape[1:]), results)
        return folded, jax.tree.map(lambda x: True, folded)

    return made


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _attended(scale: float, q: jax.Array, k: jax.Array, v: jax.Array, mask: jax.Array) -> jax.Array:
    return _with_lanes(functools.partial(_kernel, scale))(q, k, v, mask)


def _attended_forward(scale: float, *arrays: jax.Array) -> tuple[jax.Array, tuple[jax.Array, ...]]:
    return _attended(scale, *arrays), arrays


def _attended_backward(scale: float, arrays: tuple[jax.Array, ...], of_result: jax.Array) -> tuple[Any, ...]:
    """Runs the kernel forward once more: what its own gradient needs besides is not kept."""

    def gradients(q: jax.Array, k: jax.Array, v: jax.Array, mask: jax.Array, of_result: jax.Array) -> Any:
        return jax.vjp(lambda *qkv: _kernel(scale, *qkv, mask), q, k, v)[1](of_result)

    return (*_with_lanes(gradients)(*arrays, of_result), None)


_attended.defvjp(_attended_forward, _attended_backward)
