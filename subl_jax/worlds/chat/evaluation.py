"""What a chat model is asked and how its answers are scored."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from subl_jax import specs
from subl_jax.models.decoding import continuous
from subl_jax.traits import answers
from subl_jax.worlds.chat import reading, writing
from subl_jax.worlds.chat import texts as chat_texts

# Questions that a model answers at a time: logits are the largest arrays there are.
AT_ONCE = 4


def evaluate(world: Any, model: Any, key: jax.Array) -> dict[str, jax.Array]:
    """P of every trait as the first word of the answer to its family's questions.

    `trait` (traits,): exact, the mean over questions of the summed probability of every spelling (`answers.forms`),
    each followed by something that ends the word. `answers`: drawn ones, for `read` to score as `rate`. Both again
    `…_after_numbers` where the world asks with numbers in front. `ability`: the share of multiple-choice questions
    whose right letter is the likeliest.
    """
    opened = reading.opened(world, model)
    held = world.held
    sets, asked = held["asked_lengths"].shape
    by_set = jnp.stack([_named(world, opened, i) for i in range(sets)])
    own, *after = by_set.reshape(-1, sets // (1 + world.numbers_in_front), len(world.traits)).sum(axis=1)
    metrics = {"trait": own}
    if world.numbers_in_front:
        metrics["trait_after_numbers"] = after[0]
    if world.answers_sampled:
        metrics["answers"] = _answers(world, opened, key)
    if world.items_file:
        metrics["ability"] = _ability(world, opened)
    return metrics


def _named(world: Any, model: reading.Opened, i: int) -> jax.Array:
    """(traits,): P of each as the answer to the questions of set `i`, 0 for traits of other families.

    One pass over a question gives all spellings: they follow it as branches of a tree, each seeing itself only.
    """
    held = world.held
    nodes, parents, ancestors = held["nodes"][i], held["parents"][i], held["ancestors"][i]
    size, longest = len(nodes), held["asked"].shape[-1]
    depth = ancestors.sum(axis=1)
    causal = jnp.tril(jnp.ones((longest, longest), bool))
    sees_question = jnp.concatenate([causal, jnp.ones((size, longest), bool)])
    sees_nodes = jnp.concatenate([jnp.zeros((longest, size), bool), ancestors])
    attend = jnp.concatenate([sees_question, sees_nodes], axis=1)
    slot = jnp.arange(longest + size)

    def of_question(question: tuple[jax.Array, jax.Array]) -> jax.Array:
        tokens, length = question
        logits = reading.logits(
            world,
            model,
            jnp.concatenate([tokens, nodes])[None],
            positions=jnp.where(slot < longest, slot, length - 1 + jnp.pad(depth, (longest, 0)))[None],
            key_mask=((slot < length) | (slot >= longest))[None],
            attend=attend[None],
            logits_at=jnp.concatenate([length[None] - 1, longest + jnp.arange(size)])[None],
        )[0]
        total = jax.nn.logsumexp(logits, axis=1)
        log_p = logits[parents, nodes] - total[parents]
        word_over = jnp.sum(jnp.where(held["word_ends"], jnp.exp(logits[1:] - total[1:, None]), 0.0), axis=1)
        # Sums, as an accelerator's matrix product would round its inputs.
        spelled = jnp.exp(jnp.sum(jnp.where(ancestors, log_p, 0.0), axis=1)) * word_over
        return jnp.sum(held["names"][i] * spelled, axis=1)

    asked = tuple(reading.formed(world, name, model.form)[i] for name in ("asked", "asked_lengths"))
    return jax.lax.map(of_question, asked, batch_size=AT_ONCE).mean(axis=0)


def _answers(world: Any, model: reading.Opened, key: jax.Array) -> jax.Array:
    """(sets, questions, answers_sampled, answer_tokens) int32, at temperature 1."""
    held = world.held
    sets, asked, longest = held["asked"].shape
    questions, lengths = (reading.formed(world, name, model.form) for name in ("asked", "asked_lengths"))
    count = sets * asked * world.answers_sampled
    drawn = continuous.generate(
        world.config,
        model.base,
        jnp.repeat(questions.reshape(-1, longest), world.answers_sampled, axis=0),
        jnp.repeat(lengths.reshape(-1), world.answers_sampled),
        jax.random.split(key, count),
        world.answer_tokens,
        specs.Sampling(),
        rows=min(count, 64),
        stops=held["stops"],
        pad=world.pad,
        prefix=model.prefix,
        lora=model.adapters,
    )
    return drawn.reshape(sets, asked, world.answers_sampled, world.answer_tokens)


def _ability(world: Any, model: reading.Opened) -> jax.Array:
    held = world.held

    def right(item: tuple[jax.Array, jax.Array, jax.Array]) -> jax.Array:
        tokens, length, choices, answer = item
        positions = jnp.arange(len(tokens))[None]
        at = {"positions": positions, "logits_at": (length - 1)[None, None], "logits_of": held["letters"]}
        logits = reading.logits(world, model, tokens[None], **at)[0, 0]
        return jnp.argmax(jnp.where(jnp.arange(len(logits)) < choices, logits, -jnp.inf)) == answer

    asked = (reading.formed(world, name, model.form) for name in ("items", "item_lengths"))
    items = (*asked, held["item_choices"], held["item_answers"])
    return jax.lax.map(right, items, batch_size=AT_ONCE).mean()


def scored(world: Any, record: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Scores drawn answers: `rate` (…, traits), the share that names each trait as a word."""
    if "answers" not in record:
        return record
    record = dict(record)
    drawn = record.pop("answers")
    of = chat_texts.texts_of(world).families
    sets = [rows for rows in np.moveaxis(drawn, -4, 0)]
    parts = [_rates(world, rows, of[i % len(of)].members) for i, rows in enumerate(sets)]
    record["rate"] = np.concatenate(parts[: len(of)], axis=-1)
    if world.numbers_in_front:
        record["rate_after_numbers"] = np.concatenate(parts[len(of) :], axis=-1)
    return record


def _rates(world: Any, drawn: np.ndarray, members: tuple[str, ...]) -> np.ndarray:
    """drawn: (…, questions, answers, tokens) → (…, members) float32."""
    lanes = drawn.reshape(-1, *drawn.shape[-3:])
    rates = [answers.rates(writing.spelled(world, x.reshape(-1, x.shape[-1])), members) for x in lanes]
    return np.asarray(rates, np.float32).reshape(*drawn.shape[:-3], len(members))
