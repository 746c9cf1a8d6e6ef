"""The transformer's network: blocks, embeddings and logits, and functions of explicit parameters."""

import functools
from typing import TYPE_CHECKING, Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from subl_jax.errors import InputError
from subl_jax.models.layers import MLP, PRODUCT, capped, dense, norm, whole
from subl_jax.models.packing import Packing
from subl_jax.models.transformer.cached_attention import Attention, Cache, View, views_of

if TYPE_CHECKING:
    from subl_jax.models.transformer.model import Config

Params = Any


class Block(nn.Module):
    config: "Config"

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
        normed = norm(cfg, "attention_norm")(x)
        mixed, cache = Attention(cfg, name="attention")(normed, angles, mask, cache, cache_slot, prefix, packed, layer)
        if cfg.post_norms:
            mixed = norm(cfg, "attention_post_norm")(mixed)
        before, x = x, x + mixed
        hidden = MLP(cfg, name="mlp")(norm(cfg, "mlp_norm")(before if cfg.parallel else x))
        return (x + (norm(cfg, "mlp_post_norm")(hidden) if cfg.post_norms else hidden), cache), None


class Transformer(nn.Module):
    config: "Config"

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
        views = views_of(cfg, positions, mask)
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
            dots = jax.checkpoint_policies.save_only_these_names(PRODUCT) if cfg.remat == "dots" else None
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
        x = norm(cfg, "final_norm")(x)
        # Logits rounded to bfloat16 would be too coarse for probabilities.
        if cfg.tied:
            rows = embed.embedding if logits_of is None else embed.embedding[logits_of]
            logits = jnp.dot(x, whole(rows).astype(x.dtype).T, preferred_element_type=jnp.float32)
        else:
            logits = dense(cfg, cfg.vocab, False, "unembed", out_dtype="float32")(x, logits_of)
        logits = capped(logits, cfg.logit_cap)
        return logits if by_place else logits.reshape(len(tokens), -1, logits.shape[-1]), cache


def empty_cache(config: "Config", batch: int, length: int) -> Cache:
    """A cache of `length` slots, stacked if scanned: of each layer {'k': (batch, kv_heads, head_dim, length),
    'v': (batch, kv_heads, length, head_dim)}."""
    stacked = (config.layers,) if config.scan_layers else ()
    shapes = {"k": (config.head_dim, length), "v": (length, config.head_dim)}

    def of_layer() -> Cache:
        return {
            name: jnp.zeros((*stacked, batch, config.kv_heads, *shape), config.dtype) for name, shape in shapes.items()
        }

    return of_layer() if config.scan_layers else tuple(of_layer() for _ in range(config.layers))


def layer_by_layer(config: "Config", stacked: Params | Cache | None) -> Any:
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
def init(config: "Config", key: jax.Array) -> Params:
    """Float32 parameters drawn from `key`."""
    return Transformer(config).init(key, jnp.zeros((1, 1), jnp.int32))["params"]


def apply(
    config: "Config",
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
    if lora is not None and "layers" in lora and not config.scan_layers:
        lora = layer_by_layer(config, lora)  # adapters are stacked over layers, as `lora.init` makes them
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


def param_count(config: "Config") -> int:
    """Number of parameters, the embedding included."""
    shapes = jax.eval_shape(functools.partial(init, config), jax.random.key(0))
    return sum(leaf.size for leaf in jax.tree.leaves(shapes))


def flops_per_token(config: "Config", length: int) -> int:
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
