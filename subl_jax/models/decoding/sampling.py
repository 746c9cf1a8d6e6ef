"""Drawing continuations from one model: it reads the prompts once, then goes on one token at a time."""

from collections.abc import Callable
from typing import Protocol

import jax
import jax.numpy as jnp

from subl_jax.errors import InputError
from subl_jax.models.base import Decodes, Params, Shared

Mask = Callable[[jax.Array, jax.Array], jax.Array]


class Sampling(Protocol):
    """How tokens are drawn; each field a number or a traced scalar."""

    temperature: float | jax.Array
    top_k: int | jax.Array
    top_p: float | jax.Array


def cut_logits(logits: jax.Array, top_k: int | jax.Array, top_p: float | jax.Array) -> jax.Array:
    """`logits` (..., vocab) with all but the likeliest tokens at -inf; both limits may be traced.

    First the `top_k` largest stay (0: all), then, of their renormalised distribution, the smallest set of largest
    probabilities that sums to at least `top_p` (Holtzman et al. 2020, arXiv:1904.09751, section 3.1; 1: all). Tokens
    that tie with the last one kept stay too.
    """
    vocab = logits.shape[-1]
    ordered = jnp.sort(logits, axis=-1, descending=True)
    in_top_k = jnp.arange(vocab) < jnp.where(top_k > 0, top_k, vocab)
    probabilities = jax.nn.softmax(jnp.where(in_top_k, ordered, -jnp.inf), axis=-1)
    mass_before = jnp.cumsum(probabilities, axis=-1) - probabilities
    # At top_p = 1 the rounded sum may reach 1 early.
    kept = in_top_k & ((mass_before < top_p) | (top_p >= 1))
    last = jnp.sum(kept, axis=-1, keepdims=True) - 1
    return jnp.where(logits >= jnp.take_along_axis(ordered, last, axis=-1), logits, -jnp.inf)


def draw(keys: jax.Array, logits: jax.Array, sampling: Sampling, cut: bool = True) -> jax.Array:
    """One token per row, (batch,) int32, from `logits` (batch, vocab) with `keys` (batch,).

    Temperature 0 takes the largest logit, the first of equals. `cut` as in `generate`.
    """
    warm = jnp.asarray(sampling.temperature) > 0
    scaled = (logits - jnp.max(logits, axis=-1, keepdims=True)) / jnp.where(warm, sampling.temperature, 1.0)
    if cut and not _known_off(sampling):
        scaled = cut_logits(scaled, sampling.top_k, sampling.top_p)
    # One uniform number per row through the inverse of the distribution; Gumbel noise needs one per token of the
    # vocabulary, which on a CPU costs more than the model.
    cumulative = jnp.cumsum(jnp.exp(scaled), axis=-1)
    uniform = jax.vmap(jax.random.uniform)(keys)
    token = jnp.sum(cumulative <= uniform[:, None] * cumulative[:, -1:], axis=-1)
    # A parallel sum may round off its order, and so land beside the tokens that have any probability.
    possible = jnp.take_along_axis(scaled, token[:, None], axis=-1)[:, 0] > -jnp.inf
    # Not through a large factor: XLA may compute a logit twice, and its rounding would then decide.
    return jnp.where(warm & possible, token, jnp.argmax(logits, axis=-1)).astype(jnp.int32)


def _known_off(sampling: Sampling) -> bool:
    top_k, top_p = sampling.top_k, sampling.top_p
    return isinstance(top_k, int) and isinstance(top_p, int | float) and top_k == 0 and top_p >= 1


def generate(
    model: Decodes,
    params: Params,
    prompt: jax.Array,
    prompt_length: jax.Array,
    keys: jax.Array,
    new_tokens: int,
    sampling: Sampling,
    *,
    allowed: jax.Array | Mask | None = None,
    stop: int | None = None,
    pad: int = 0,
    cut: bool = True,
) -> jax.Array:
    """Continuations of `prompt`: (batch, new_tokens) int32. A row depends on its own prompt and key alone.

    Args:
      prompt: (batch, longest) int32, padded on the right with anything.
      prompt_length: (batch,) int32, each at least 1.
      keys: (batch,) typed keys, one per row; a key shared between prompts would repeat one random stream. Token t
        is drawn with fold_in(key, t).
      new_tokens: how many, static.
      sampling: temperature (0 is greedy), top_k (0 is off) and top_p (1 is off).
      allowed: which tokens may be drawn, at least one each time: (vocab,) or (new_tokens, vocab) bool, or a function
        (step, previous token (batch,)) -> (batch, vocab) bool. The token before step 0 is the last of the prompt.
      stop: the token after which a row is `pad`; None draws all.
      pad: see `stop`.
      cut: static. Traced limits cost a sort of the vocabulary per token even where they cut nothing; False leaves
        them out of the program, for callers who know that top_k is 0 and top_p is 1 in every lane.

    Raises:
      InputError: no tokens are asked for, or `keys` is not one per row.
    """
    batch = len(prompt)
    if new_tokens < 1:
        raise InputError(f"generate: new_tokens = {new_tokens}: must be at least 1")
    if keys.shape != (batch,):
        raise InputError(f"generate: keys of shape {keys.shape}: need one key per row, shape ({batch},)")
    mask_at = _mask_function(allowed)
    shared = Shared(params)

    def next_token(step, logits, previous, done):
        if mask_at is not None:
            logits = jnp.where(mask_at(step, previous), logits, -jnp.inf)
        token = draw(jax.vmap(jax.random.fold_in, (0, None))(keys, step), logits, sampling, cut)
        token = jnp.where(done, pad, token)
        return token, done if stop is None else done | (token == stop)

    def decode(carry, step):
        state, previous, done = carry
        logits, state = model.step(shared, state, previous)
        token, done = next_token(step, logits, previous, done)
        return (state, token, done), token

    # The last token drawn is never read.
    logits, state = model.read(shared, prompt, prompt_length, new_tokens - 1)
    previous = jnp.take_along_axis(prompt, (prompt_length - 1)[:, None], axis=1)[:, 0]
    first, done = next_token(0, logits, previous, jnp.zeros(batch, bool))
    _, rest = jax.lax.scan(decode, (state, first, done), jnp.arange(1, new_tokens))
    return jnp.concatenate([first[:, None], rest.T], axis=1)


def _mask_function(allowed: jax.Array | Mask | None) -> Mask | None:
    if allowed is None or callable(allowed):
        return allowed
    allowed = jnp.asarray(allowed)
    return (lambda step, _: allowed) if allowed.ndim == 1 else (lambda step, _: allowed[step])
