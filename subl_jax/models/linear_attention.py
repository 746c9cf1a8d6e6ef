"""A decoder with linear attention: its memory is of one size, however long the text.

With phi(x) = elu(x) + 1 a head gives, at token i, phi(q_i)' S_i / (phi(q_i)' z_i), where S_i and z_i are the sums of
phi(k_j) v_j' and of phi(k_j) over j ≤ i (Katharopoulos et al. 2020, arXiv:2006.16236, eq. 9 and 16 to 18). Positions
are rotary, in the numerator alone (Su et al. 2021, arXiv:2104.09864, eq. 19). Embedding, norms and MLP are the
transformer's.

    embed/embedding                             (vocab, width), which gives the logits too
    layers_0/attention_norm/scale               (width,)
    layers_0/attention/{q,k,v,o}/kernel         (inputs, outputs)
    layers_0/mlp_norm/scale                     (width,)
    layers_0/mlp/{gate,up,down}/kernel
    final_norm/scale                            (width,)
"""

import dataclasses
import functools
from typing import Any, ClassVar, NamedTuple, Self

import flax.linen as nn
import jax
import jax.numpy as jnp

from subl_jax.errors import InputError
from subl_jax.models.base import Decodes, Shared, Site, TakesAdapters
from subl_jax.models.layers import MLP, RMSNorm, dense, rope, rope_angles

Params = Any
# Tokens whose scores are computed at once; between such chunks there is only the memory.
_CHUNK = 64


class Memory(NamedTuple):
    """What a layer remembers of each row: S (rows, heads, head_dim, head_dim) and z (rows, heads, head_dim)."""

    mixed: jax.Array
    total: jax.Array


class State(NamedTuple):
    """The memories of the layers, and how many tokens each row has read, (rows,) int32."""

    layers: tuple[Memory, ...]
    count: jax.Array


@dataclasses.dataclass(frozen=True)
class LinearAttention(Decodes, TakesAdapters):
    """The shape of a decoder with linear attention, and the model of this shape.

    `mlp` is the hidden size of the gated MLP. `dtype` is that of the compute; memories are float32.

    Raises:
      InputError: `heads` does not divide `width` into even parts.
    """

    name: ClassVar[str] = "linear_attention"

    vocab: int
    width: int
    layers: int
    heads: int
    mlp: int
    dtype: str = "float32"
    init_scale: float = 1.0
    norm_eps: float = 1e-6
    rope_base: float = 10000.0
    activation: str = "silu"
    gated: ClassVar[bool] = True
    mlp_bias: ClassVar[bool] = False

    def __post_init__(self) -> None:
        if self.width % (2 * self.heads):
            raise InputError(f"LinearAttention.heads = {self.heads}: must divide width = {self.width} into even parts")

    @classmethod
    def of(cls, *, vocab: int, width: int, layers: int, heads: int, kv_heads: int, mlp: int, dtype: str) -> Self:
        return cls(vocab=vocab, width=width, layers=layers, heads=heads, mlp=mlp, dtype=dtype)

    @property
    def head_dim(self) -> int:
        return self.width // self.heads

    def init(self, key: jax.Array) -> Params:
        return _init(self, key)

    def apply(
        self, params: Params, inputs: jax.Array, at: jax.Array | None = None, adapters: Params | None = None
    ) -> jax.Array:
        state = self.empty(Shared(params), len(inputs), inputs.shape[1], 0)
        return self._run(Shared(params, adapters), state, inputs, at=at)[0]

    def flops(self, length: int = 1) -> float:
        """As if computed by memory alone: two products of head_dim * head_dim a head, to remember and to recall."""
        per_layer = 2 * (4 * self.width**2 + 3 * self.width * self.mlp) + 4 * self.heads * self.head_dim**2
        return self.layers * per_layer + 2 * self.width * self.vocab

    def adapter_sites(self) -> dict[str, Site]:
        attention = {name: Site(("attention", name), self.width, self.width) for name in "qkvo"}
        up = {name: Site(("mlp", name), self.width, self.mlp) for name in ("gate", "up")}
        return {**attention, **up, "down": Site(("mlp", "down"), self.mlp, self.width)}

    # --- decoding ---

    def empty(self, shared: Shared, rows: int, longest: int, room: int) -> State:
        if shared.prefix is not None:
            return jax.tree.map(lambda x: jnp.broadcast_to(x, (rows, *x.shape[1:])), shared.prefix)
        mixed = jnp.zeros((rows, self.heads, self.head_dim, self.head_dim))
        return State((Memory(mixed, mixed[..., 0]),) * self.layers, jnp.zeros(rows, jnp.int32))

    def read_prefix(self, params: Params, tokens: jax.Array, length: jax.Array, adapters: Params | None) -> State:
        return self.read(Shared(params, adapters), tokens[None], jnp.reshape(length, 1), 0)[1]

    def read(
        self, shared: Shared, prompts: jax.Array, lengths: jax.Array, room: int, most: int | None = None
    ) -> tuple[jax.Array, State]:
        state = self.empty(shared, *prompts.shape, room)
        there = jnp.arange(prompts.shape[1]) < lengths[:, None]
        logits, state = self._run(shared, state, prompts, there, at=jnp.maximum(lengths - 1, 0)[:, None])
        return logits[:, 0], state

    def step(self, shared: Shared, state: State, tokens: jax.Array) -> tuple[jax.Array, State]:
        logits, state = self._run(shared, state, tokens[:, None])
        return logits[:, 0], state

    def gather(self, state: State, other: State, place: jax.Array, taking: jax.Array) -> State:
        def chosen(old: jax.Array, new: jax.Array) -> jax.Array:
            return jnp.where(taking.reshape(-1, *[1] * (old.ndim - 1)), new[place], old)

        return jax.tree.map(chosen, state, other)

    def _run(
        self,
        shared: Shared,
        state: State,
        tokens: jax.Array,
        there: jax.Array | None = None,
        at: jax.Array | None = None,
    ) -> tuple[jax.Array, State]:
        variables = {"params": shared.params}
        if shared.adapters is not None:
            # Adapters are stacked over layers; this model's layers are apart.
            stacked = shared.adapters["layers"]
            variables["lora"] = {f"layers_{i}": jax.tree.map(lambda x, i=i: x[i], stacked) for i in range(self.layers)}
        return _Decoder(self).apply(variables, tokens, state, there, at, shared.tokens)


# Compiled even when called alone, so that XLA rounds the draws as it does in a vmapped program.
@functools.partial(jax.jit, static_argnums=0)
def _init(model: LinearAttention, key: jax.Array) -> Params:
    state = model.empty(Shared(None), 1, 1, 0)
    return _Decoder(model).init(key, jnp.zeros((1, 1), jnp.int32), state)["params"]


def _features(x: jax.Array) -> jax.Array:
    return nn.elu(x.astype(jnp.float32)) + 1


class _Attention(nn.Module):
    model: LinearAttention

    @nn.compact
    def __call__(self, x: jax.Array, memory: Memory, angles: Any, there: jax.Array | None) -> tuple[jax.Array, Memory]:
        """x: (batch * length, width); there: (batch, length) bool, the tokens to be remembered; None: all."""
        model, batch = self.model, len(memory.total)
        q, k, v = (
            dense(model, model.width, False, name)(x).reshape(batch, -1, model.heads, model.head_dim) for name in "qkv"
        )
        q, k, v = _features(q), _features(k), v.astype(jnp.float32)
        if there is not None:
            k = jnp.where(there[..., None, None], k, 0.0)
        mixed, memory = linear_attention(q, k, v, rope(q, angles), rope(k, angles), memory)
        return dense(model, model.width, False, "o")(mixed.reshape(x.shape)), memory


def linear_attention(
    q: jax.Array, k: jax.Array, v: jax.Array, turned_q: jax.Array, turned_k: jax.Array, memory: Memory
) -> tuple[jax.Array, Memory]:
    """(turned q' S) / (q' z) at every token, each (batch, length, heads, head_dim), and the memory after the last."""
    outputs = []
    for start in range(0, q.shape[1], _CHUNK):
        of_chunk = (x[:, start : start + _CHUNK] for x in (q, k, v, turned_q, turned_k))
        output, memory = _chunk(*of_chunk, memory)
        outputs.append(output)
    return jnp.concatenate(outputs, axis=1), memory


def _chunk(
    q: jax.Array, k: jax.Array, v: jax.Array, turned_q: jax.Array, turned_k: jax.Array, memory: Memory
) -> tuple[jax.Array, Memory]:
    causal = jnp.tril(jnp.ones((q.shape[1], q.shape[1]), bool))
    scores = jnp.where(causal, jnp.einsum("bihd,bjhd->bhij", turned_q, turned_k), 0.0)
    mixed = jnp.einsum("bhij,bjhd->bihd", scores, v) + jnp.einsum("bihd,bhde->bihe", turned_q, memory.mixed)
    total = jnp.cumsum(k, axis=1) + memory.total[:, None]
    after = Memory(memory.mixed + jnp.einsum("bjhd,bjhe->bhde", turned_k, v), total[:, -1])
    return mixed / jnp.sum(q * total, axis=-1, keepdims=True), after


class _Block(nn.Module):
    model: LinearAttention

    @nn.compact
    def __call__(self, x: jax.Array, memory: Memory, angles: Any, there: jax.Array | None) -> tuple[jax.Array, Memory]:
        eps = self.model.norm_eps
        normed = RMSNorm(eps, name="attention_norm")(x)
        mixed, memory = _Attention(self.model, name="attention")(normed, memory, angles, there)
        x = x + mixed
        return x + MLP(self.model, name="mlp")(RMSNorm(eps, name="mlp_norm")(x)), memory


class _Decoder(nn.Module):
    model: LinearAttention

    @nn.compact
    def __call__(
        self,
        tokens: jax.Array,
        state: State,
        there: jax.Array | None = None,
        at: jax.Array | None = None,
        logits_of: jax.Array | None = None,
    ) -> tuple[jax.Array, State]:
        """tokens: (batch, length), after what `state` holds → logits (batch, length or n, vocab), the new state."""
        model = self.model
        embed_init = nn.initializers.normal(model.init_scale / model.width**0.5)
        embed = nn.Embed(model.vocab, model.width, dtype=model.dtype, embedding_init=embed_init, name="embed")
        angles = rope_angles(state.count[:, None] + jnp.arange(tokens.shape[1]), model.head_dim, model.rope_base)
        x, memories = embed(tokens.reshape(-1)), []  # without the batch axis, as adapters want it
        for i, memory in enumerate(state.layers):
            x, memory = _Block(model, name=f"layers_{i}")(x, memory, angles, there)
            memories.append(memory)
        x = x.reshape(*tokens.shape, -1)
        if at is not None:
            x = jnp.take_along_axis(x, at[..., None], axis=1)
        x = RMSNorm(model.norm_eps, name="final_norm")(x)
        rows = embed.embedding if logits_of is None else embed.embedding[logits_of]
        logits = jnp.dot(x, rows.astype(x.dtype).T, preferred_element_type=jnp.float32)
        read = tokens.shape[1] if there is None else there.sum(axis=1)
        return logits, State(tuple(memories), state.count + read)
