"""Layers that architectures share: norms, rotary positions, projections with their adapters, the MLP.

`config` is any model with the fields that a layer reads (`transformer.Config` has them all).
"""

import functools
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name
from jax.sharding import PartitionSpec

from subl_jax.models import low_rank

ACTIVATIONS: dict[str, Callable[[jax.Array], jax.Array]] = {
    "silu": nn.silu,
    "gelu": functools.partial(nn.gelu, approximate=False),
    "gelu_tanh": functools.partial(nn.gelu, approximate=True),
    "relu": nn.relu,
}
PRODUCT = "product with a matrix"  # the name under which `remat` knows these


def rope_angles(
    positions: jax.Array, head_dim: int, base: float, factors: tuple[float, ...] | None = None
) -> tuple[jax.Array, jax.Array]:
    """cos and sin, each (..., length, 1, head_dim // 2) float32, for `positions` (..., length).

    Pair i of position p is turned by p * base^(-2i / head_dim) / factors[i] (Su et al. 2021, arXiv:2104.09864, eq. 15).
    """
    frequencies = base ** (-jnp.arange(0, head_dim, 2, dtype=jnp.float32) / head_dim)
    if factors is not None:
        frequencies = frequencies / jnp.asarray(factors, jnp.float32)
    angles = positions[..., None, None].astype(jnp.float32) * frequencies
    return jnp.cos(angles), jnp.sin(angles)


def rope(x: jax.Array, angles: tuple[jax.Array, jax.Array]) -> jax.Array:
    """`x` (batch, length, heads, head_dim) turned by its position.

    Pair i of n is entries i and i + n; what lies beyond the 2 n entries of the pairs stays as it is.
    """
    cos, sin = angles
    pairs = cos.shape[-1]
    first, second, *rest = jnp.split(x, list(range(pairs, x.shape[-1], pairs)), axis=-1)
    return jnp.concatenate([first * cos - second * sin, second * cos + first * sin, *rest], axis=-1).astype(x.dtype)


class RMSNorm(nn.Module):
    """x / rms(x) * scale over the last axis, in float32 (Zhang and Sennrich 2019, arXiv:1910.07467, eq. 4)."""

    eps: float

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        scale = self.param("scale", nn.initializers.ones, (x.shape[-1],), jnp.float32)
        x32 = x.astype(jnp.float32)
        normed = x32 * jax.lax.rsqrt(jnp.mean(x32 * x32, axis=-1, keepdims=True) + self.eps)
        return (normed * scale).astype(x.dtype)


def norm(config: Any, name: str) -> nn.Module:
    """RMSNorm, or (x - mean) / std * scale + bias (Ba et al. 2016, arXiv:1607.06450), both in float32."""
    if config.norm == "rms":
        return RMSNorm(config.norm_eps, name=name)
    return nn.LayerNorm(config.norm_eps, dtype=config.dtype, use_fast_variance=False, name=name)


def capped(x: jax.Array, cap: float | None) -> jax.Array:
    return x if cap is None else cap * jnp.tanh(x / cap)


def whole(matrix: jax.Array) -> jax.Array:
    """A matrix that the devices of an `fsdp` group have parts of, brought together where it is multiplied with.

    Left to itself the compiler may move the lanes' activations instead. On any other mesh, or none, it is as it was.
    """
    return jax.lax.with_sharding_constraint(matrix, PartitionSpec()) if spread_over("fsdp") else matrix


def spread_over(*axes: str) -> bool:
    """Whether the compiler splits the program over one of these axes of devices."""
    return any(jax.sharding.get_abstract_mesh().shape.get(axis, 1) > 1 for axis in axes)


class Dense(nn.Module):
    """x kernel + bias, plus the low-rank update where the `lora` collection holds one for it."""

    features: int
    use_bias: bool
    dtype: str
    init_scale: float
    out_dtype: str | None = None

    @nn.compact
    def __call__(self, x: jax.Array, columns: jax.Array | None = None) -> jax.Array:
        kernel_init = nn.initializers.variance_scaling(self.init_scale**2, "fan_in", "normal")
        kernel = self.param("kernel", kernel_init, (x.shape[-1], self.features), jnp.float32)
        kernel = whole(kernel if columns is None else kernel[:, columns])
        x = x.astype(self.dtype)
        y = jnp.dot(x, kernel.astype(self.dtype), preferred_element_type=self.out_dtype or self.dtype)
        if self.has_variable("lora", "a"):
            a, b = (self.get_variable("lora", name).astype(self.dtype) for name in "ab")
            y = (y + low_rank.update(x, a, b)).astype(y.dtype)
        if self.use_bias:
            bias = self.param("bias", nn.initializers.zeros, (self.features,), jnp.float32)
            y = y + bias.astype(y.dtype)
        return checkpoint_name(y, PRODUCT)


def dense(config: Any, features: int, bias: bool, name: str, **options: Any) -> Dense:
    return Dense(features, bias, config.dtype, config.init_scale, name=name, **options)


class MLP(nn.Module):
    config: Any

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        cfg = self.config
        activation = ACTIVATIONS[cfg.activation]
        up = dense(cfg, cfg.mlp, cfg.mlp_bias, "up")(x)
        hidden = activation(dense(cfg, cfg.mlp, cfg.mlp_bias, "gate")(x)) * up if cfg.gated else activation(up)
        return dense(cfg, cfg.width, cfg.mlp_bias, "down")(hidden)
