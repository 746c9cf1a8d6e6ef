"""The transformer as a model: its sizes, and how it decodes."""

import dataclasses
from typing import Any, ClassVar, NamedTuple, Self

import jax
import jax.numpy as jnp

from subl_jax.errors import InputError
from subl_jax.models.base import Decodes, HasResiduals, Shared, Site, TakesAdapters
from subl_jax.models.layers import ACTIVATIONS
from subl_jax.models.packing import packing
from subl_jax.models.transformer import network, residual
from subl_jax.models.transformer.cached_attention import SLOTS_AXIS, Cache

Params = Any
_CHOICES = {
    "activation": tuple(ACTIVATIONS),
    "norm": ("rms", "layer"),
    "dtype": ("float32", "bfloat16"),
    "remat": ("none", "dots", "all"),
    "attention": ("plain", "auto"),
}


@dataclasses.dataclass(frozen=True)
class Config(Decodes, TakesAdapters, HasResiduals):
    """The shape of a transformer, and the model of this shape.

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

    name: ClassVar[str] = "transformer"

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

    # --- the protocol ---

    @classmethod
    def of(cls, *, vocab: int, width: int, layers: int, heads: int, kv_heads: int, mlp: int, dtype: str) -> Self:
        return cls(vocab=vocab, width=width, layers=layers, heads=heads, kv_heads=kv_heads, mlp=mlp, dtype=dtype)

    def init(self, key: jax.Array) -> Params:
        return network.init(self, key)

    def apply(
        self, params: Params, inputs: jax.Array, at: jax.Array | None = None, adapters: Params | None = None
    ) -> jax.Array:
        return network.apply(self, params, inputs, logits_at=at, lora=adapters)[0]

    def flops(self, length: int = 1) -> float:
        return network.flops_per_token(self, length)

    def residuals(self, params: Params, inputs: jax.Array, added: jax.Array | None = None) -> jax.Array:
        return residual.residuals(self, params, inputs, added)

    def steered(self, params: Params, inputs: jax.Array, added: jax.Array, at: jax.Array | None = None) -> jax.Array:
        return residual.steered(self, params, inputs, added, at)

    def adapter_sites(self) -> dict[str, Site]:
        inner, keys = self.heads * self.head_dim, self.kv_heads * self.head_dim
        sizes = {"q": (self.width, inner), "k": (self.width, keys), "v": (self.width, keys), "o": (inner, self.width)}
        mlp = {"up": (self.width, self.mlp), "down": (self.mlp, self.width)}
        gate = {"gate": (self.width, self.mlp)} if self.gated else {}
        return {
            **{name: Site(("attention", name), *size) for name, size in sizes.items()},
            **{name: Site(("mlp", name), *size) for name, size in {**mlp, **gate}.items()},
        }

    # --- decoding ---

    def empty(self, shared: Shared, rows: int, longest: int, room: int) -> "State":
        nothing = jnp.zeros(rows, jnp.int32)
        cache = network.empty_cache(self, rows, longest + room)
        return State(cache, nothing + 1, nothing, jnp.int32(0), longest)

    def read_prefix(self, params: Params, tokens: jax.Array, length: jax.Array, adapters: Params | None) -> "Prefix":
        cache = network.empty_cache(self, 1, len(tokens))
        nothing = jnp.zeros((1, 1), jnp.int32)
        _, cache = network.apply(
            self, params, tokens[None], cache=cache, logits_at=nothing, logits_of=nothing[0], lora=adapters
        )
        batch_axis = 1 if self.scan_layers else 0
        return Prefix(jax.tree.map(lambda x: jnp.take(x, 0, axis=batch_axis), cache), length)

    def read(
        self, shared: Shared, prompts: jax.Array, lengths: jax.Array, room: int, most: int | None = None
    ) -> tuple[jax.Array, "State"]:
        rows, longest = prompts.shape
        packed = None
        if most is not None and most < rows * longest:
            packed = packing(jnp.arange(longest) < lengths[:, None], most)
        before = 0 if shared.prefix is None else shared.prefix.length
        logits, cache = self._read(
            shared,
            prompts,
            jnp.broadcast_to(before + jnp.arange(longest), prompts.shape),
            cache=network.empty_cache(self, rows, longest + room),
            logits_at=jnp.maximum(lengths - 1, 0)[:, None],
            packed=packed,
        )
        return logits[:, 0], State(cache, lengths, jnp.zeros(rows, jnp.int32), jnp.int32(0), longest)

    def step(self, shared: Shared, state: "State", tokens: jax.Array) -> tuple[jax.Array, "State"]:
        longest = state.longest
        ring = network.slots_of(state.cache) - longest
        # All rows write the same slot. Each sees its prompt, and what it wrote itself since it took it up.
        count = jnp.minimum(state.count + 1, ring)
        age = (state.steps - jnp.arange(ring)) % ring
        own = jnp.concatenate([jnp.arange(longest) < state.length[:, None], age < count[:, None]], axis=1)
        before = 0 if shared.prefix is None else shared.prefix.length
        logits, cache = self._read(
            shared,
            tokens[:, None],
            (before + state.length + count - 1)[:, None],
            cache=state.cache,
            cache_slot=longest + state.steps % ring,
            attend=own[:, None],
        )
        return logits[:, 0], dataclasses.replace(state, cache=cache, count=count, steps=state.steps + 1)

    def _read(self, shared: Shared, tokens: jax.Array, positions: jax.Array, **options: Any) -> tuple[jax.Array, Cache]:
        if shared.prefix is not None:
            options |= {"prefix": shared.prefix.cache, "prefix_length": shared.prefix.length}
        return network.apply(
            self, shared.params, tokens, positions, lora=shared.adapters, logits_of=shared.tokens, **options
        )

    def gather(self, state: "State", other: "State", place: jax.Array, taking: jax.Array) -> "State":
        """The slots of prompts are copied; those of steps are the row's own from its next step on."""

        def copied(path: Any, old: jax.Array, new: jax.Array) -> jax.Array:
            axis = SLOTS_AXIS[path[-1].key]
            own = jax.lax.slice_in_dim(old, 0, state.longest, axis=axis)
            chosen = jnp.where(taking[:, None, None, None], jnp.take(new, place, axis=-4), own)
            return jax.lax.dynamic_update_slice_in_dim(old, chosen, 0, axis)

        return dataclasses.replace(
            state,
            cache=jax.tree_util.tree_map_with_path(copied, state.cache, other.cache),
            length=jnp.where(taking, other.length[place], state.length),
            count=jnp.where(taking, 0, state.count),
        )

    def layers_apart(self) -> "Config":
        return dataclasses.replace(self, scan_layers=False)

    def taken_apart(self, tree: Any) -> Any:
        def apart(part: Any) -> Any:
            return network.layer_by_layer(self, part)

        if isinstance(tree, State):
            return dataclasses.replace(tree, cache=apart(tree.cache))
        prefix = tree.prefix and tree.prefix._replace(cache=apart(tree.prefix.cache))
        return tree._replace(params=apart(tree.params), adapters=apart(tree.adapters), prefix=prefix)


class Prefix(NamedTuple):
    """What all prompts have before them: their cache without the axis of a batch, and its length ()."""

    cache: Cache
    length: jax.Array


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class State:
    """The keys and values of rows, first of their prompts (`longest` slots), then a ring of slots for their steps.

    All rows write the same slot at a step, whichever token each of them is at.
    """

    cache: Cache
    length: jax.Array  # (rows,) int32, of the prompt
    count: jax.Array  # (rows,) int32, steps since the prompt
    steps: jax.Array  # () int32, steps of all rows
    longest: int = dataclasses.field(metadata={"static": True})
