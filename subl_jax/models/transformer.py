"""A decoder-only transformer: pre-norm, rotary or learned positions, grouped queries, optional gate.

One module serves the small models trained here and the checkpoints read from disk (families.py says which fields make
which family). Parameters start in float32 whatever the compute type; those of a checkpoint may be stored in bfloat16,
but for the norms. The key-value cache is an explicit value, passed in and returned.

    embed/embedding                                    (vocab, width)
    position_embed/embedding                           (learned_positions, width), absent when rotary
    layers_0/attention_norm/{scale,bias}               (width,); only layer norms have a bias
    layers_0/attention/{q,k,v,o}/{kernel,bias}         kernels are (inputs, outputs)
    layers_0/attention/{q_norm,k_norm}/scale           (head_dim,)
    layers_0/attention_post_norm/{scale,bias}          (width,), with post_norms
    layers_0/mlp_norm/{scale,bias}                     (width,)
    layers_0/mlp/{gate,up,down}/{kernel,bias}
    layers_0/mlp_post_norm/{scale,bias}                (width,), with post_norms
    final_norm/{scale,bias}                            (width,)
    unembed/kernel                                     (width, vocab), absent when tied

With `scan_layers` the layers are one entry, `layers/...`, with a leading axis.

A low-rank update of a projection (LoRA) is given beside the parameters, in a tree of the same paths: `a`
(inputs, rank) and `b` (rank, outputs) are added as (x a) b. Under vmap the projection itself stays one matrix product.
"""

import dataclasses
import functools
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name
from jax.sharding import PartitionSpec

from subl_jax.errors import InputError
from subl_jax.models import fused_attention, low_rank

Params = Any
Cache = Any
# Of keys (…, kv_heads, head_dim, slots) and of values (…, kv_heads, slots, head_dim).
SLOTS_AXIS = {"k": -1, "v": -2}
# How a layer sees: the angles of the rotary positions, if they are rotary, and which slots it attends to.
View = tuple[tuple[jax.Array, jax.Array] | None, jax.Array]


class Packing(NamedTuple):
    """Which places of a batch there are: matrices are multiplied with these only, and attention alone sees the rest.

    places: (packed,) int32, their indices into batch * length, that product itself where there are fewer.
    slots: (batch * length,) int32, the inverse: where a place is among the packed, their number where it is not.
    """

    places: jax.Array
    slots: jax.Array


def room(share: float, rows: int, places: int) -> int:
    """How many of rows * places to compute: this share, rounded up, and never less than one row has."""
    return min(rows * places, max(places, math.ceil(share * rows * places / _MULTIPLE) * _MULTIPLE))


def packing(there: jax.Array, packed: int) -> Packing:
    """there: (batch, length) bool, at most `packed` of them true."""
    flat = there.reshape(-1)
    (places,) = jnp.nonzero(flat, size=packed, fill_value=flat.size)
    return Packing(places, jnp.where(flat, jnp.cumsum(flat) - 1, packed))


@jax.custom_vjp
def _rows(x: jax.Array, index: jax.Array, inverse: jax.Array) -> jax.Array:
    """x[index] along the first axis, zeros where it is outside. `inverse` leads back, and the gradient with it."""
    return jnp.take(x, index, axis=0, mode="fill", fill_value=0)


_rows.defvjp(
    lambda x, index, inverse: (_rows(x, index, inverse), (index, inverse)),
    lambda both, gradient: (_rows(gradient, both[1], both[0]), None, None),
)

_ACTIVATIONS: dict[str, Callable[[jax.Array], jax.Array]] = {
    "silu": nn.silu,
    "gelu": functools.partial(nn.gelu, approximate=False),
    "gelu_tanh": functools.partial(nn.gelu, approximate=True),
    "relu": nn.relu,
}
_CHOICES = {
    "activation": tuple(_ACTIVATIONS),
    "norm": ("rms", "layer"),
    "dtype": ("float32", "bfloat16"),
    "remat": ("none", "dots", "all"),
    "attention": ("plain", "auto"),
}
_PRODUCT = "product with a matrix"  # the name under which `remat` knows these
_MULTIPLE = 16  # sizes of packed matrices that machines like
# A score that no softmax notices; finite, so that a row without any allowed slot is not nan.
_MASKED = -1e30


@dataclasses.dataclass(frozen=True)
class Config:
    """The shape of a transformer.

    `kv_heads` None means `heads`, `head_dim` None means `width // heads`; both are resolved when the config is made.
    `mlp` is the hidden size; `gated` is the three-matrix form down(activation(gate x) * up x). `dtype` is that of the
    compute. Matrices start normal with standard deviation `init_scale / sqrt(inputs)`, the embedding with
    `init_scale / sqrt(width)`, which makes initial tied logits of unit scale.

    `remat` is what the gradient computes again instead of keeping it: nothing, all of a block but the products with its
    matrices, or all of it.

    `attention` of more than one query: plain is in three steps; auto is by the kernel of fused_attention.py where that
    is known to run.

    What some families add:
      norm: `rms`, or `layer` with a mean and a bias.
      post_norms: what attention and MLP give is normed too, before it is added.
      parallel: attention and MLP both read the block's input.
      learned_positions: how many; None means rotary positions.
      rotary_dim: how many entries of a head are turned, the first ones; None means all.
      rope_factors: one per turned pair, its frequency is divided by it; None means 1.
      window: local layers attend to the last so many slots of those that may be attended to, their own included.
      local_layers: which layers are local, one per layer; None means all, where there is a window.
      local_rope_base: rotary base of the local layers, without factors; None means as in the others.
      embed_scale: what embeddings are multiplied with on the way in.
      query_scale: what scores are multiplied with; None means `head_dim ** -0.5`.
      attention_cap, logit_cap: scores and logits x become cap * tanh(x / cap).

    Raises:
      InputError: a field is impossible.
    """

    vocab: int
    width: int
    layers: int
    heads: int
    mlp: int
    kv_heads: int | None = None
    head_dim: int | None = None
    activation: str = "silu"
    gated: bool = True
    qkv_bias: bool = False
    out_bias: bool = False
    mlp_bias: bool = False
    qk_norm: bool = False
    tied: bool = True
    rope_base: float = 10000.0
    norm_eps: float = 1e-6
    dtype: str = "float32"
    scan_layers: bool = False
    remat: str = "none"
    attention: str = "plain"
    init_scale: float = 1.0
    norm: str = "rms"
    post_norms: bool = False
    parallel: bool = False
    learned_positions: int | None = None
    rotary_dim: int | None = None
    rope_factors: tuple[float, ...] | None = None
    window: int | None = None
    local_layers: tuple[bool, ...] | None = None
    local_rope_base: float | None = None
    embed_scale: float = 1.0
    query_scale: float | None = None
    attention_cap: float | None = None
    logit_cap: float | None = None

    def __post_init__(self) -> None:
        counts = ("vocab", "width", "layers", "heads", "mlp", "kv_heads", "head_dim")
        for name in (*counts, "learned_positions", "rotary_dim", "window"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise InputError(f"Config.{name} = {value}: must be at least 1")
        if self.kv_heads is None:
            object.__setattr__(self, "kv_heads", self.heads)
        if self.head_dim is None:
            if self.width % self.heads:
                raise InputError(f"Config.heads = {self.heads}: must divide width = {self.width}")
            object.__setattr__(self, "head_dim", self.width // self.heads)
        if self.heads % self.kv_heads:
            raise InputError(f"Config.kv_heads = {self.kv_heads}: must divide heads = {self.heads}")
        turned = self.rotary_dim or self.head_dim
        if self.learned_positions is None and (turned % 2 or turned > self.head_dim):
            name = "head_dim" if self.rotary_dim is None else "rotary_dim"
            raise InputError(
                f"Config.{name} = {turned}: must be even, rotary positions turn pairs, and at most {self.head_dim}"
            )
        if self.rope_factors is not None and len(self.rope_factors) != turned // 2:
            raise InputError(
                f"Config.rope_factors has {len(self.rope_factors)} entries: must be one per pair, {turned // 2}"
            )
        if self.local_layers is not None and (len(self.local_layers) != self.layers or self.window is None):
            raise InputError(f"Config.local_layers: must be one per layer, {self.layers}, and needs a window")
        for name, choices in _CHOICES.items():
            if getattr(self, name) not in choices:
                raise InputError(f"Config.{name} = {getattr(self, name)!r}: must be one of {', '.join(choices)}")


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


def _norm(config: Config, name: str) -> nn.Module:
    """RMSNorm, or (x - mean) / std * scale + bias (Ba et al. 2016, arXiv:1607.06450), both in float32."""
    if config.norm == "rms":
        return RMSNorm(config.norm_eps, name=name)
    return nn.LayerNorm(config.norm_eps, dtype=config.dtype, use_fast_variance=False, name=name)


def _capped(x: jax.Array, cap: float | None) -> jax.Array:
    return x if cap is None else cap * jnp.tanh(x / cap)


def _whole(matrix: jax.Array) -> jax.Array:
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
        kernel = _whole(kernel if columns is None else kernel[:, columns])
        x = x.astype(self.dtype)
        y = jnp.dot(x, kernel.astype(self.dtype), preferred_element_type=self.out_dtype or self.dtype)
        if self.has_variable("lora", "a"):
            a, b = (self.get_variable("lora", name).astype(self.dtype) for name in "ab")
            y = (y + low_rank.update(x, a, b)).astype(y.dtype)
        if self.use_bias:
            bias = self.param("bias", nn.initializers.zeros, (self.features,), jnp.float32)
            y = y + bias.astype(y.dtype)
        return checkpoint_name(y, _PRODUCT)


def _views(config: Config, positions: jax.Array, mask: jax.Array) -> dict[bool, View]:
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


def _dense(config: Config, features: int, bias: bool, name: str, **options: Any) -> Dense:
    return Dense(features, bias, config.dtype, config.init_scale, name=name, **options)


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
    scores = jnp.where(mask[:, :, None], _capped(scores, cap).reshape(*grouped, -1), _MASKED)
    weights = jax.nn.softmax(scores).astype(v.dtype).reshape(batch, kv_heads, -1, scores.shape[-1])
    mixed = jnp.einsum("bkqs,bksd->bkqd", weights[..., -slots:], v)
    if prefix is not None:
        mixed = mixed + jnp.einsum("bkqs,ksd->bkqd", weights[..., :-slots], prefix["v"])
    return mixed.reshape(*grouped, head_dim).transpose(0, 3, 1, 2, 4).reshape(batch, length, -1)


def _fused(config: Config) -> bool:
    if config.attention != "auto" or config.attention_cap is not None:
        return False
    # Split over the devices of a group, the kernel would have to be split too.
    return not spread_over("tensor", "fsdp") and fused_attention.usable(config.dtype, config.head_dim)


def _remembered(
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

    config: Config

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
            y = _dense(cfg, heads * cfg.head_dim, cfg.qkv_bias, name)(x)
            y = y if packed is None else _rows(y, packed.slots, packed.places)
            return y.reshape(batch, length, heads, cfg.head_dim)

        q, k, v = projected("q", cfg.heads), projected("k", cfg.kv_heads), projected("v", cfg.kv_heads)
        if cfg.qk_norm:
            q, k = RMSNorm(cfg.norm_eps, name="q_norm")(q), RMSNorm(cfg.norm_eps, name="k_norm")(k)
        if angles is not None:
            q, k = rope(q, angles), rope(k, angles)
        k, v = k.transpose(0, 2, 3, 1), v.swapaxes(1, 2)
        if cache is not None:
            cache, (k, v) = _remembered(cache, {"k": k, "v": v}, layer, cache_slot)
        if prefix is not None and length > 1:
            # One product with all keys is faster. A single query would read the prefix again in every row.
            shared = {name: jnp.broadcast_to(prefix[name], (batch, *prefix[name].shape)) for name in "kv"}
            k, v = (jnp.concatenate([shared[name], own], SLOTS_AXIS[name]) for name, own in (("k", k), ("v", v)))
            prefix = None
        scale = cfg.head_dim**-0.5 if cfg.query_scale is None else cfg.query_scale
        if length > 1 and _fused(cfg):
            mixed = fused_attention.attention(q, k.transpose(0, 3, 1, 2), v.swapaxes(1, 2), mask, scale)
        else:
            mixed = attention(q, k, v, mask, prefix, scale, cfg.attention_cap)
        mixed = mixed.reshape(batch * length, -1)
        mixed = mixed if packed is None else _rows(mixed, packed.places, packed.slots)
        mixed = checkpoint_name(mixed, _PRODUCT)
        return _dense(cfg, cfg.width, cfg.out_bias, "o")(mixed), cache


class MLP(nn.Module):
    config: Config

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        cfg = self.config
        activation = _ACTIVATIONS[cfg.activation]
        up = _dense(cfg, cfg.mlp, cfg.mlp_bias, "up")(x)
        hidden = activation(_dense(cfg, cfg.mlp, cfg.mlp_bias, "gate")(x)) * up if cfg.gated else activation(up)
        return _dense(cfg, cfg.width, cfg.mlp_bias, "down")(hidden)


class Block(nn.Module):
    config: Config

    @nn.compact
    def __call__(
        self,
        carry: tuple[jax.Array, Cache | None],
        layer: jax.Array | None,
        prefix: Cache | None,
        local: jax.Array | None,
        views: tuple[View, ...],
        cache_slot: jax.Array | int,
        packed: Packing | None,
    ) -> tuple[tuple[jax.Array, Cache | None], None]:
        """The cache is that of all layers, and `layer` which of them this is; or the layer's own, and None."""
        cfg, (x, cache) = self.config, carry
        angles, mask = views[0] if local is None else jax.tree.map(lambda *two: jnp.where(local, *two), *views)
        normed = _norm(cfg, "attention_norm")(x)
        mixed, cache = Attention(cfg, name="attention")(normed, angles, mask, cache, cache_slot, prefix, packed, layer)
        if cfg.post_norms:
            mixed = _norm(cfg, "attention_post_norm")(mixed)
        before, x = x, x + mixed
        hidden = MLP(cfg, name="mlp")(_norm(cfg, "mlp_norm")(before if cfg.parallel else x))
        return (x + (_norm(cfg, "mlp_post_norm")(hidden) if cfg.post_norms else hidden), cache), None


class Transformer(nn.Module):
    config: Config

    @nn.compact
    def __call__(
        self,
        tokens: jax.Array,
        positions: jax.Array | None = None,
        cache: Cache | None = None,
        cache_slot: jax.Array | int = 0,
        key_mask: jax.Array | None = None,
        logits_at: jax.Array | None = None,
        prefix: Cache | None = None,
        prefix_length: jax.Array | int | None = None,
        attend: jax.Array | None = None,
        logits_of: jax.Array | None = None,
        packed: Packing | None = None,
    ) -> tuple[jax.Array, Cache | None]:
        """Next-token logits, and the cache with the keys and values of `tokens` written into it.

        Args:
          tokens: (batch, length) int32.
          positions: (batch, length) int32 rotary positions; by default the slot of each token.
          cache: from `empty_cache` or an earlier call; None attends over `tokens` alone.
          cache_slot: slot of the first token, the same for all rows.
          key_mask: (batch, slots) bool, the slots that may be attended to; attention is causal by slot besides.
            `slots` is the length of the cache, or of `tokens` without one.
          logits_at: (batch, n) int32 indices into `tokens`, or (n,) places among batch * length; only their logits are
            computed. None: all of them.
          prefix: keys and values, as of a cache, of tokens that all rows have before their own: no batch axis. What
            comes after it needs `positions` that go on from it.
          prefix_length: () int32, how much of the prefix there is; the rest is padding. None: all of it.
          attend: (batch or 1, length, slots) bool in place of causal attention; the prefix is attended to besides.
          logits_of: (n,) int32, the only tokens of the vocabulary whose logits are computed. None: all of them.
          packed: the places that are not padding. The others are not to be attended to, and their logits are of no
            meaning.

        Returns:
          Logits (batch, length or n, vocab) float32, or (n, vocab) of n places, and the new cache or None.
        """
        cfg = self.config
        length = tokens.shape[1]
        slots = length if cache is None else slots_of(cache)
        own_slots = cache_slot + jnp.arange(length)
        causal = (jnp.arange(slots) <= own_slots[:, None])[None]
        mask = (causal if attend is None else attend)[:, None]
        if key_mask is not None:
            mask = mask & key_mask[:, None, None, :]
        if prefix is not None:
            shared = slots_of(prefix)
            there = jnp.arange(shared) < (shared if prefix_length is None else prefix_length)
            mask = jnp.concatenate([jnp.broadcast_to(there, (*mask.shape[:-1], shared)), mask], axis=-1)
        positions = own_slots if positions is None else positions
        views = _views(cfg, positions, mask)
        local = cfg.local_layers or (cfg.window is not None,) * cfg.layers

        embed_init = nn.initializers.normal(cfg.init_scale / cfg.width**0.5)
        embed = nn.Embed(cfg.vocab, cfg.width, dtype=cfg.dtype, embedding_init=embed_init, name="embed")
        places = slice(None) if packed is None else packed.places
        x = embed(tokens.reshape(-1)[places])
        if cfg.embed_scale != 1:
            x = x * jnp.asarray(cfg.embed_scale, x.dtype)
        if cfg.learned_positions is not None:
            if mask.shape[-1] > cfg.learned_positions:
                raise InputError(f"{mask.shape[-1]} slots: the model has positions for {cfg.learned_positions}")
            at = nn.Embed(
                cfg.learned_positions, cfg.width, dtype=cfg.dtype, embedding_init=embed_init, name="position_embed"
            )
            x = x + at(jnp.broadcast_to(positions, tokens.shape).reshape(-1)[places])

        block = Block
        if cfg.remat != "none":
            # Scores are recomputed either way: they are the largest of what a block makes, and cheap. A projection and
            # its low-rank update are kept as the one array that they add up to.
            dots = jax.checkpoint_policies.save_only_these_names(_PRODUCT) if cfg.remat == "dots" else None
            block = nn.remat(Block, prevent_cse=not cfg.scan_layers, policy=dots)
        if cfg.scan_layers:
            layers = nn.scan(
                block,
                variable_axes={"params": 0, "lora": 0},
                split_rngs={"params": True},
                in_axes=(0, 0, 0, nn.broadcast, nn.broadcast, nn.broadcast),
                length=cfg.layers,
            )
            mixed = len(set(local)) > 1
            kinds = (jnp.asarray(local), (views[True], views[False])) if mixed else (None, (views[local[0]],))
            layer = None if cache is None else jnp.arange(cfg.layers)
            (x, cache), _ = layers(cfg, name="layers")((x, cache), layer, prefix, *kinds, cache_slot, packed)
        else:
            caches = [None] * cfg.layers if cache is None else list(cache)
            prefixes = [None] * cfg.layers if prefix is None else prefix
            for i in range(cfg.layers):
                layer = block(cfg, name=f"layers_{i}")
                own = (None, prefixes[i], None, (views[local[i]],), cache_slot, packed)
                (x, caches[i]), _ = layer((x, caches[i]), *own)
            cache = None if cache is None else tuple(caches)

        by_place = logits_at is not None and logits_at.ndim == 1
        if logits_at is not None or packed is not None:
            at = jnp.arange(length)[None] if logits_at is None else logits_at
            at = at if by_place else (jnp.arange(len(tokens))[:, None] * length + at).reshape(-1)
            x = x[at if packed is None else packed.slots[at]]
        x = _norm(cfg, "final_norm")(x)
        # Logits rounded to bfloat16 would be too coarse for probabilities.
        if cfg.tied:
            rows = embed.embedding if logits_of is None else embed.embedding[logits_of]
            logits = jnp.dot(x, _whole(rows).astype(x.dtype).T, preferred_element_type=jnp.float32)
        else:
            logits = _dense(cfg, cfg.vocab, False, "unembed", out_dtype="float32")(x, logits_of)
        logits = _capped(logits, cfg.logit_cap)
        return logits if by_place else logits.reshape(len(tokens), -1, logits.shape[-1]), cache


def empty_cache(config: Config, batch: int, length: int) -> Cache:
    """A cache of `length` slots, stacked if scanned: of each layer {'k': (batch, kv_heads, head_dim, length),
    'v': (batch, kv_heads, length, head_dim)}."""
    stacked = (config.layers,) if config.scan_layers else ()
    shapes = {"k": (config.head_dim, length), "v": (length, config.head_dim)}

    def of_layer() -> Cache:
        return {
            name: jnp.zeros((*stacked, batch, config.kv_heads, *shape), config.dtype) for name, shape in shapes.items()
        }

    return of_layer() if config.scan_layers else tuple(of_layer() for _ in range(config.layers))


def layer_by_layer(config: Config, stacked: Params | Cache | None) -> Any:
    """Parameters, low-rank updates or a cache of scanned layers, as the model has them without `scan_layers`.

    What has no `layers` is a cache.
    """
    if not stacked:
        return stacked
    if "layers" not in stacked:
        return tuple({name: array[i] for name, array in stacked.items()} for i in range(config.layers))
    layers = {f"layers_{i}": jax.tree.map(lambda x, i=i: x[i], stacked["layers"]) for i in range(config.layers)}
    return {**{name: each for name, each in stacked.items() if name != "layers"}, **layers}


def slots_of(cache: Cache) -> int:
    """How many slots a cache has, or a prefix."""
    one = cache if isinstance(cache, dict) else cache[0]
    return one["v"].shape[-2]


# Compiled even when called alone, so that XLA rounds the draws as it does in a vmapped program.
@functools.partial(jax.jit, static_argnums=0)
def init(config: Config, key: jax.Array) -> Params:
    """Float32 parameters drawn from `key`."""
    return Transformer(config).init(key, jnp.zeros((1, 1), jnp.int32))["params"]


def apply(
    config: Config,
    params: Params,
    tokens: jax.Array,
    positions: jax.Array | None = None,
    cache: Cache | None = None,
    cache_slot: jax.Array | int = 0,
    key_mask: jax.Array | None = None,
    logits_at: jax.Array | None = None,
    prefix: Cache | None = None,
    prefix_length: jax.Array | int | None = None,
    attend: jax.Array | None = None,
    logits_of: jax.Array | None = None,
    packed: Packing | None = None,
    lora: Params | None = None,
) -> tuple[jax.Array, Cache | None]:
    """`Transformer.__call__` with explicit parameters, and the low-rank updates of some of its projections."""
    return Transformer(config).apply(
        {"params": params, **({} if lora is None else {"lora": lora})},
        tokens,
        positions,
        cache,
        cache_slot,
        key_mask,
        logits_at,
        prefix,
        prefix_length,
        attend,
        logits_of,
        packed,
    )


def param_count(config: Config) -> int:
    """Number of parameters, the embedding included."""
    shapes = jax.eval_shape(functools.partial(init, config), jax.random.key(0))
    return sum(leaf.size for leaf in jax.tree.leaves(shapes))


def flops_per_token(config: Config, length: int) -> int:
    """Forward FLOPs per token in a sequence of `length`; training takes three times as many.

    Two per entry of every matrix a token is multiplied with, the unembedding included, plus 4 * length * heads *
    head_dim per layer for the scores and the mix, counted as if not causal (Chowdhery et al. 2022, arXiv:2204.02311,
    appendix B).
    """
    inner = config.heads * config.head_dim
    projections = config.width * (2 * inner + 2 * config.kv_heads * config.head_dim)
    mlp = config.width * config.mlp * (3 if config.gated else 2)
    per_layer = 2 * (projections + mlp) + 4 * length * inner
    return config.layers * per_layer + 2 * config.width * config.vocab
