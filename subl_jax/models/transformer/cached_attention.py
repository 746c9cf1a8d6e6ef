"""Attention of the transformer, with its cache of keys and values."""

from typing import TYPE_CHECKING, Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name

from subl_jax.models import fused_attention
from subl_jax.models.layers import PRODUCT, RMSNorm, capped, dense, rope, rope_angles, spread_over
from subl_jax.models.packing import Packing, rows_of

if TYPE_CHECKING:
    from subl_jax.models.transformer.model import Config

Cache = Any
# Of keys (…, kv_heads, head_dim, slots) and of values (…, kv_heads, slots, head_dim).
SLOTS_AXIS = {"k": -1, "v": -2}
# How a layer sees: the angles of the rotary positions, if they are rotary, and which slots it attends to.
View = tuple[tuple[jax.Array, jax.Array] | None, jax.Array]
# A score that no softmax notices; finite, so that a row without any allowed slot is not nan.
_MASKED = -1e30


def views_of(config: "Config", positions: jax.Array, mask: jax.Array) -> dict[bool, View]:
    """The views of the local layers (True) and of the others, from `positions` and `mask` of (…, length, slots)."""
    if config.learned_positions is not None:
        far = near = None
    else:
        turned = config.rotary_dim or config.head_dim
        far = near = rope_angles(positions, turned, config.rope_base, config.rope_factors)
        if config.local_rope_base is not None:
            near = rope_angles(positions, turned, config.local_rope_base)
    if config.window is None:
        return {False: (far, mask)}
    from_the_last = jax.lax.cumsum(mask.astype(jnp.int32), axis=mask.ndim - 1, reverse=True)
    return {False: (far, mask), True: (near, mask & (from_the_last <= config.window))}


def attention(
    q: jax.Array,
    k: jax.Array,
    v: jax.Array,
    mask: jax.Array,
    prefix: Cache | None = None,
    scale: float | None = None,
    cap: float | None = None,
) -> jax.Array:
    """softmax(scale q k') v, where query head i reads key head i // (heads / kv_heads).

    q: (batch, length, heads, head_dim); k: (batch, kv_heads, head_dim, slots); v: (batch, kv_heads, slots, head_dim);
    mask: (batch or 1, 1, length, slots) bool. The softmax is in float32. Returns (batch, length, heads * head_dim).

    `prefix` {'k', 'v'}: as k and v, without the batch axis, is attended to by all rows, before their own slots; `mask`
    is then (…, shared + slots). `scale` None is 1 / sqrt(head_dim); scores x become cap * tanh(x / cap).

    Both products are of matrices as they lie in memory: few queries times keys that a CPU must turn first take four
    times as long.
    """
    batch, length, heads, head_dim = q.shape
    kv_heads, slots = v.shape[1:3]
    grouped = (batch, kv_heads, heads // kv_heads, length)
    q = (
        (q * (head_dim**-0.5 if scale is None else scale))
        .reshape(batch, length, kv_heads, -1, head_dim)
        .transpose(0, 2, 3, 1, 4)
    )
    q = q.reshape(batch, kv_heads, -1, head_dim)
    scores = jnp.einsum("bkqd,bkds->bkqs", q, k, preferred_element_type=jnp.float32)
    if prefix is not None:
        shared = jnp.einsum("bkqd,kds->bkqs", q, prefix["k"], preferred_element_type=jnp.float32)
        scores = jnp.concatenate([shared, scores], axis=-1)
    scores = jnp.where(mask[:, :, None], capped(scores, cap).reshape(*grouped, -1), _MASKED)
    weights = jax.nn.softmax(scores).astype(v.dtype).reshape(batch, kv_heads, -1, scores.shape[-1])
    mixed = jnp.einsum("bkqs,bksd->bkqd", weights[..., -slots:], v)
    if prefix is not None:
        mixed = mixed + jnp.einsum("bkqs,ksd->bkqd", weights[..., :-slots], prefix["v"])
    return mixed.reshape(*grouped, head_dim).transpose(0, 3, 1, 2, 4).reshape(batch, length, -1)


def fused(config: "Config") -> bool:
    if config.attention != "auto" or config.attention_cap is not None:
        return False
    # Split over the devices of a group, the kernel would have to be split too.
    return not spread_over("tensor", "fsdp") and fused_attention.usable(config.dtype, config.head_dim)


def remembered(
    cache: Cache, new: Cache, layer: jax.Array | None, slot: jax.Array | int
) -> tuple[Cache, list[jax.Array]]:
    """The cache with `new` in it from `slot` on, and the keys and values of this layer.

    Of a stacked cache only the new slots are written: it is carried through the layers, and never copied.
    """
    if layer is None:
        cache = {
            name: jax.lax.dynamic_update_slice_in_dim(cache[name], new[name], slot, SLOTS_AXIS[name]) for name in "kv"
        }
        return cache, [cache[name] for name in "kv"]
    at = {"k": (layer, 0, 0, 0, slot), "v": (layer, 0, 0, slot, 0)}
    cache = {name: jax.lax.dynamic_update_slice(cache[name], new[name][None], at[name]) for name in "kv"}
    return cache, [jax.lax.dynamic_index_in_dim(cache[name], layer, keepdims=False) for name in "kv"]


class Attention(nn.Module):
    """Takes and gives (batch * length, width): a CPU multiplies matrices twice as fast without the batch axis."""

    config: "Config"

    @nn.compact
    def __call__(
        self,
        x: jax.Array,
        angles: tuple[jax.Array, jax.Array] | None,
        mask: jax.Array,
        cache: Cache | None,
        cache_slot: jax.Array | int,
        prefix: Cache | None,
        packed: Packing | None,
        layer: jax.Array | None,
    ) -> tuple[jax.Array, Cache | None]:
        cfg = self.config
        length = mask.shape[-2]
        batch = (x if packed is None else packed.slots).shape[0] // length

        def projected(name: str, heads: int) -> jax.Array:
            y = dense(cfg, heads * cfg.head_dim, cfg.qkv_bias, name)(x)
            y = y if packed is None else rows_of(y, packed.slots, packed.places)
            return y.reshape(batch, length, heads, cfg.head_dim)

        q, k, v = projected("q", cfg.heads), projected("k", cfg.kv_heads), projected("v", cfg.kv_heads)
        if cfg.qk_norm:
            q, k = RMSNorm(cfg.norm_eps, name="q_norm")(q), RMSNorm(cfg.norm_eps, name="k_norm")(k)
        if angles is not None:
            q, k = rope(q, angles), rope(k, angles)
        k, v = k.transpose(0, 2, 3, 1), v.swapaxes(1, 2)
        if cache is not None:
            cache, (k, v) = remembered(cache, {"k": k, "v": v}, layer, cache_slot)
        if prefix is not None and length > 1:
            # One product with all keys is faster. A single query would read the prefix again in every row.
            shared = {name: jnp.broadcast_to(prefix[name], (batch, *prefix[name].shape)) for name in "kv"}
            k, v = (jnp.concatenate([shared[name], own], SLOTS_AXIS[name]) for name, own in (("k", k), ("v", v)))
            prefix = None
        scale = cfg.head_dim**-0.5 if cfg.query_scale is None else cfg.query_scale
        if length > 1 and fused(cfg):
            mixed = fused_attention.attention(q, k.transpose(0, 3, 1, 2), v.swapaxes(1, 2), mask, scale)
        else:
            mixed = attention(q, k, v, mask, prefix, scale, cfg.attention_cap)
        mixed = mixed.reshape(batch * length, -1)
        mixed = mixed if packed is None else rows_of(mixed, packed.places, packed.slots)
        mixed = checkpoint_name(mixed, PRODUCT)
        return dense(cfg, cfg.width, cfg.out_bias, "o")(mixed), cache
