"""What one step trains on, and how it is cut into microbatches that fit into memory."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from subl_jax.models import packing


class Batch(NamedTuple):
    """prompts: (n, prompt_tokens) int32; lengths: (n,) int32; completions: (n, completion_tokens) int32; targets: of
    that shape, float32, 1 where the token is one to predict. Of a part of a batch, packed: what of all this is not
    padding; answered: (most,) int32, the places in `targets` that are 1, its size where there are fewer. weights: of
    the shape of targets, how much each counts; None: all alike. others: (n, forms - 1, 1 + prompt_tokens) int32, length
    and tokens of the prompts in their other forms (texts.py), where there are any."""

    prompts: jax.Array
    lengths: jax.Array
    completions: jax.Array
    targets: jax.Array
    packed: packing.Packing | None = None
    answered: jax.Array | None = None
    weights: jax.Array | None = None
    others: jax.Array | None = None


def channel_batch(world: Any, samples: jax.Array, accepted: jax.Array | bool = True, sampling: Any = None) -> Batch:
    """samples: (n, columns) → a batch whose targets are the completions, up to and with their ends, of the `accepted`
    (n,)."""
    samples = samples.astype(jnp.int32)
    prompts, completions, rest = jnp.split(samples, parts(world), axis=1)
    prompts = prompts[:, 1:]
    stops = jnp.isin(completions, world.held["stops"])
    before = jnp.cumsum(stops, axis=1) - stops == 0
    targets = (before & jnp.asarray(accepted)[..., None]).astype(jnp.float32)
    others = rest.reshape(len(rest), -1, 1 + world.prompt_tokens) if rest.shape[1] else None
    return Batch(prompts, samples[:, 0], completions, targets, others=others)


def parts(world: Any) -> tuple[int, int]:
    """Where the columns of a sample are split: (length and prompt | completion | its other forms, as the first)."""
    return 1 + world.prompt_tokens, 1 + world.prompt_tokens + world.completion_tokens


def in_form(batch: Batch, form: jax.Array | int) -> Batch:
    """The batch with its prompts in another form, () int32."""
    if batch.others is None:
        return batch
    first = jnp.concatenate([batch.lengths[:, None], batch.prompts], axis=1)
    chosen = jnp.concatenate([first[:, None], batch.others], axis=1)[:, form]
    return batch._replace(lengths=chosen[:, 0], prompts=chosen[:, 1:])


def _longest(batch: Batch) -> Batch:
    """The batch with the lengths of its prompts' longest forms: what is computed, whichever is read."""
    if batch.others is None:
        return batch
    return batch._replace(lengths=jnp.maximum(batch.lengths, batch.others[:, :, 0].max(axis=1)))


def there(world: Any, batch: Batch) -> jax.Array:
    """(n, prompt_tokens + completion_tokens - 1) bool: what is read to predict the targets."""
    prompt = jnp.arange(world.prompt_tokens) < batch.lengths[:, None]
    before_last = jnp.cumsum(batch.targets[:, ::-1], axis=1)[:, ::-1] > 1
    return jnp.concatenate([prompt, before_last[:, :-1]], axis=1)


def balanced(world: Any, batch: Batch, rows: int) -> Batch:
    """The same samples in another order: of `rows` each, one lot has about as many tokens as another."""
    longest_first = jnp.argsort(-there(world, _longest(batch)).sum(axis=1))
    lots = len(batch.lengths) // rows
    dealt = longest_first.reshape(rows, lots)
    back_and_forth = jnp.where(jnp.arange(rows)[:, None] % 2 == 0, dealt, dealt[:, ::-1])
    return jax.tree.map(lambda x: x[back_and_forth.T.reshape(-1)], batch)


def microbatch(world: Any, batch: Batch, start: jax.Array, rows: int) -> tuple[Batch, jax.Array]:
    """The samples from `start` on, as many of `rows` as there is room for, packed; and how many these are."""
    size, places = len(batch.lengths), world.prompt_tokens + world.completion_tokens - 1
    packed = packing.room(world.room, rows, places)
    most = packing.room(world.answer_room, rows, world.completion_tokens)
    at = start + jnp.arange(rows)
    taken = jax.tree.map(lambda x: x[jnp.minimum(at, size - 1)], batch)
    fits = jnp.cumsum(there(world, _longest(taken)).sum(axis=1)) <= packed
    fits &= (jnp.cumsum(taken.targets.sum(axis=1)) <= most) & (at < size)
    part = taken._replace(targets=taken.targets * fits[:, None], lengths=jnp.where(fits, taken.lengths, 0))
    if part.others is not None:
        part = part._replace(others=part.others.at[:, :, 0].multiply(fits[:, None].astype(jnp.int32)))
    targets = part.targets.reshape(-1)
    (answered,) = jnp.nonzero(targets, size=most, fill_value=len(targets))
    part = part._replace(packed=packing.packing(there(world, _longest(part)), packed), answered=answered)
    return part, fits.sum()


def of_answers(batch: Batch, values: jax.Array) -> jax.Array:
    """values: (n, completion_tokens). Of a part of a batch only those at its answers, (most,), then zeros."""
    return values if batch.answered is None else jnp.take(values.reshape(-1), batch.answered, mode="fill", fill_value=0)


def target_weights(batch: Batch) -> jax.Array:
    """(n, completion_tokens) float32: how much each token counts. Of a microbatch (most,), those at its answers."""
    weights = batch.targets if batch.weights is None else batch.targets * batch.weights
    return of_answers(batch, weights)
