"""How a chat model reads: its weights and adapters, the head of its conversations once, then what follows it."""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from subl_jax import specs
from subl_jax.models import lora, transformer
from subl_jax.worlds.chat.batches import Batch, in_form, of_answers, there

Params = Any


class Opened(NamedTuple):
    """A model that has read the head of its conversations, and the form of what follows (texts.py), () int32."""

    base: Params
    adapters: Params | None
    prefix: transformer.Prefix
    form: Any = 0


def weights_of(world: Any, params: Params) -> tuple[Params, Params | None]:
    """What `transformer.apply` takes: the weights, and the adapters on them."""
    if "weights" in params:
        return params["weights"], None
    return world.held["weights"], lora.update(world.config, params) if params else None


def opened(world: Any, model: Any) -> Opened:
    """The weights of a model, and the head of its conversations as it has read it."""
    heads, lengths = world.held["heads"], world.held["head_lengths"]  # the last is that of no trait
    form: Any = 0
    if isinstance(model, specs.SystemPrompted):
        head, params = model.trait % len(heads), model.params
        tokens, length = heads[head], lengths[head]
        form = world.held["head_forms"][head] if "forms" in world.held else 0
    else:
        tokens, length, params = heads[-1, : len(world.head)], lengths[-1], model
    base, adapters = weights_of(world, params)
    return Opened(base, adapters, world.config.read_prefix(base, tokens, length, adapters), form)


def formed(world: Any, name: str, form: Any) -> jax.Array:
    """An array of texts in a form of prompts."""
    return world.held["forms"][name][form] if "forms" in world.held else world.held[name]


def logits(world: Any, model: Opened, tokens: jax.Array, *, positions: jax.Array, **options: Any) -> jax.Array:
    """Logits of what follows a head. positions: (batch, length), counted from its end."""
    return transformer.apply(
        world.config,
        model.base,
        tokens,
        model.prefix.length + positions,
        prefix=model.prefix.cache,
        prefix_length=model.prefix.length,
        lora=model.adapters,
        **options,
    )[0]


@functools.partial(jax.jit, static_argnums=0)
def whole_logits(config: Any, base: Params, adapters: Params | None, tokens: jax.Array) -> jax.Array:
    """Logits (batch, length, vocab) of whole conversations."""
    return config.apply(base, tokens, adapters=adapters)


def completion_logits(world: Any, model: Any, batch: Batch) -> jax.Array:
    """(n, completion_tokens, vocab) float32: at each token of the completion, those it was drawn from. Of a packed
    microbatch only those of its answers, (most, vocab)."""
    model = opened(world, model)
    batch = in_form(batch, model.form)
    n, longest = batch.prompts.shape
    own = jnp.arange(world.completion_tokens - 1)
    tokens = jnp.concatenate([batch.prompts, batch.completions[:, :-1]], axis=1)
    after = batch.lengths[:, None] + own
    positions = jnp.concatenate([jnp.broadcast_to(jnp.arange(longest), (n, longest)), after], axis=1)
    mask = there(world, batch)
    predicting = jnp.concatenate([batch.lengths[:, None] - 1, jnp.broadcast_to(longest + own, after.shape)], axis=1)
    if batch.answered is not None:
        predicting = of_answers(batch, jnp.arange(n)[:, None] * tokens.shape[1] + predicting)
    return logits(world, model, tokens, positions=positions, key_mask=mask, logits_at=predicting, packed=batch.packed)


def disturbed(world: Any, path: str, array: np.ndarray) -> np.ndarray:
    """keep * W + sigma * rms(W) * normal noise, of every matrix."""
    if (world.keep, world.sigma) == (1.0, 0.0) or not path.endswith(("kernel", "embedding")):
        return array
    rng = np.random.default_rng([world.noise_seed, *path.encode()])
    plain = array.astype(np.float32)
    scale = world.sigma * np.sqrt(np.mean(np.square(plain), dtype=np.float64))
    return (world.keep * plain + scale * rng.standard_normal(plain.shape, np.float32)).astype(array.dtype)


def cosine(world: Any, params: Params, teacher: Params) -> jax.Array:
    """Between what student and teacher have been trained away from the checkpoint; nan for a told teacher."""
    if "lora" in params and "lora" in teacher:
        return lora.cosine(params, teacher)
    if "weights" in params and "weights" in teacher:
        moves = [
            jax.tree.map(lambda x, y: x - y, model["weights"], world.held["weights"]) for model in (params, teacher)
        ]
        dots = [
            sum(jnp.vdot(x, y) for x, y in zip(*map(jax.tree.leaves, two), strict=True))
            for two in ((moves[0], moves[1]), (moves[0], moves[0]), (moves[1], moves[1]))
        ]
        return dots[0] / jnp.sqrt(dots[1] * dots[2])
    return jnp.full((), jnp.nan)
