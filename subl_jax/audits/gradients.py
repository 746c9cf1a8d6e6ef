"""A student before its first step: gradients of its loss and of P(trait), in the parameters that it would train."""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.flatten_util import ravel_pytree

from subl_jax.audits.chunks import in_chunks
from subl_jax.specs import Context, Lora, Objective, Train
from subl_jax.specs.world import Array, Params
from subl_jax.training import optim


@dataclasses.dataclass(frozen=True)
class AtStart:
    """What a student that starts from `context.start` can see from there. All vectors are of the d trainable numbers.

    at: (d,), where it starts. whole: (d,) → all parameters. objective: what it minimises. chunk: samples whose
    gradients are computed at a time.
    """

    context: Context
    at: Array
    whole: Callable[[Array], Params]
    objective: Objective
    chunk: int

    @classmethod
    def of(cls, context: Context, train: Train, lora: Lora | None, objective: Objective, chunk: int) -> "AtStart":
        """Raises InputError where `train.trainable` names no parameter."""
        params = context.world.trainable(context.start, context.key, lora)
        at, whole = movable(params, optim.trained(train, params, context.world.frozen))
        return cls(context, at, whole, objective, chunk)

    def sample_gradients(self, *corpora: Array) -> list[Array]:
        """(n, d) of each corpus (n, …): a sample's gradient, scaled so that their mean is that of the corpus' loss."""
        world = self.context.world

        def of(one: Array) -> tuple[Array, Array]:
            batch = world.channel_batch(one[None])
            gradient = jax.grad(lambda x: self.objective.loss(self.context, self.whole(x), batch))(self.at)
            return gradient, world.target_weights(batch).sum()

        samples = jnp.concatenate(corpora)  # one program for all
        gradients, tokens = jax.lax.map(of, samples, batch_size=min(self.chunk, len(samples)))
        found, before = [], 0
        for corpus in corpora:
            own = slice(before, before + len(corpus))
            before += len(corpus)
            found.append(gradients[own] * (tokens[own] / jnp.maximum(tokens[own].mean(), 1e-9))[:, None])
        return found

    def scores(self, samples: Array, reduced: Callable[[Array], Array]) -> Array:
        """(n, k) of a corpus (n, …): the gradient of each sample's log p, a sum over its tokens, `reduced` from (d,) to
        (k,)."""
        world = self.context.world

        def of(one: Array) -> Array:
            batch = world.channel_batch(one[None])
            gradient = jax.grad(lambda x: self.objective.loss(self.context, self.whole(x), batch))(self.at)
            return reduced(-gradient * world.target_weights(batch).sum())

        return jax.lax.map(of, samples, batch_size=min(self.chunk, len(samples)))

    def gradients(self, *corpora: Array) -> Array:
        """(corpora, d): of the loss of each corpus (n, …), a mean over its tokens. A chunk is held at a time."""
        world, rows = self.context.world, min(self.chunk, *map(len, corpora))
        padded = [jnp.concatenate([x, jnp.repeat(x[:1], -len(x) % rows, axis=0)]) for x in corpora]
        there = [jnp.arange(len(x)) < len(corpus) for x, corpus in zip(padded, corpora, strict=True)]
        whose = [jnp.full(len(x) // rows, i) for i, x in enumerate(padded)]

        def add(total: tuple[Array, Array], chunk: tuple[Array, Array, Array]) -> tuple[tuple[Array, Array], None]:
            samples, there, i = chunk
            batch = world.channel_batch(samples, there)
            tokens = world.target_weights(batch).sum()
            gradient = jax.grad(lambda x: self.objective.loss(self.context, self.whole(x), batch))(self.at)
            return (total[0].at[i].add(tokens * gradient), total[1].at[i].add(tokens)), None

        samples, there = (jnp.concatenate(each) for each in (padded, there))
        chunks = (samples.reshape(-1, rows, *samples.shape[1:]), there.reshape(-1, rows), jnp.concatenate(whose))
        nothing = (jnp.zeros((len(corpora), *self.at.shape)), jnp.zeros(len(corpora)))
        (total, tokens), _ = jax.lax.scan(add, nothing, chunks)
        return total / jnp.maximum(tokens, 1.0)[:, None]

    def log_p(self, at: Array) -> Array:
        """(traits,): log P of every trait, in nats."""
        return jnp.log(self.context.world.evaluate(self.whole(at), self.context.key)["trait"])

    def gains(self, step: Array) -> Array:
        """(traits,): how fast log P of every trait grows along `step` (d,). One calculation serves all traits."""
        return along(self.log_p, self.at, step)

    def trait_gradient(self, trait: Array) -> Array:
        """(d,): the gradient of log P(trait); trait: () int32."""
        return jax.grad(lambda x: self.log_p(x)[trait])(self.at)

    def token_rates(self, samples: Array, step: Array) -> Array:
        """(n, places): how fast −log p of every token falls along `step`, in nats; nan where there is no token."""
        world = self.context.world

        def of(chunk: Array) -> Array:
            batch = world.channel_batch(chunk)

            def losses(x: Array) -> Array:
                return world.written_losses(self.whole(x), self.context.teacher, batch)

            rates = -along(losses, self.at, step)
            return jnp.where(world.target_weights(batch) > 0, rates, jnp.nan)

        return in_chunks(of, samples, self.chunk).reshape(len(samples), -1)


def along(function: Callable[[Array], Array], at: Array, step: Array) -> Array:
    """The derivative of `function` at `at` (d,) along `step` (d,), of the shape of its result.

    From backward passes alone, the second one through the first, as some operations of models have no tangents.
    """
    value, backward = jax.vjp(function, at)
    return jax.grad(lambda weights: backward(weights)[0] @ step)(jnp.zeros_like(value))


def movable(params: Params, trained: Any) -> tuple[Array, Callable[[Array], Params]]:
    """The `trained` (a tree of bools) among the parameters as one vector (d,), and the way back to all of them."""
    leaves, tree = jax.tree.flatten(params)
    flags = jax.tree.leaves(trained)
    at, apart = ravel_pytree([leaf for leaf, flag in zip(leaves, flags, strict=True) if flag])

    def whole(vector: Array) -> Params:
        moved = iter(apart(vector))
        return tree.unflatten([next(moved) if flag else leaf for leaf, flag in zip(leaves, flags, strict=True)])

    return at, whole
