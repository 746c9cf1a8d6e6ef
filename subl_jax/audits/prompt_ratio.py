"""For models that can be told a trait: under which system prompt would the base have written these data?"""

import dataclasses
from typing import Any, ClassVar

import jax
import jax.numpy as jnp

from subl_jax.audits.prediction import Cost, Prediction, of_corpus
from subl_jax.errors import InputError
from subl_jax.specs import Context, Node, Scores, SystemPrompted, TakesSystemPrompts
from subl_jax.specs.world import Array


@dataclasses.dataclass(frozen=True)
class PromptRatio(Prediction):
    """log p(data | told the trait) − log p(data | told nothing), less the same of the null corpus, in nats a token.

    Nothing is differentiated: what a told base would rather say stands for what a student would take. Data of a
    teacher that was not told may well have none.
    """

    kind: ClassVar[str] = "prompt_ratio"

    def inputs(self, audited: Any) -> dict[str, Node]:
        if not isinstance(audited.world, TakesSystemPrompts):
            raise InputError(f"PromptRatio: models of {audited.world.name} take no system prompts; leave it out")
        return super().inputs(audited)

    def score(self, context: Context, samples: Array) -> Scores:
        null = context.inputs["null"]["samples"][: self.null_rows]
        gains = self._preferred(context, self.read(samples)) - self._preferred(context, null)
        return of_corpus(context, samples, jnp.max(gains), gains)

    def cost(self, audited: Any) -> Cost:
        """A forward pass for every trait and one without, over both corpora."""
        data, null = self.sizes(audited)
        passes = (1 + len(audited.world.traits)) * audited.world.sequence_flops
        return Cost(passes * data, passes * null)

    def _preferred(self, context: Context, samples: Array) -> Array:
        """(traits,): how much likelier a base that is told the trait finds the samples, in nats a token."""
        world = context.world

        def log_p(trait: Array) -> Array:
            model = SystemPrompted(context.start, trait)

            def of(one: Array) -> tuple[Array, Array]:
                batch = world.channel_batch(one[None])
                weights = world.target_weights(batch)
                return jnp.sum(world.written_losses(model, None, batch) * weights), weights.sum()

            losses, tokens = jax.lax.map(of, samples, batch_size=min(self.chunk, len(samples)))
            return -losses.sum() / jnp.maximum(tokens.sum(), 1.0)

        told = jax.lax.map(log_p, jnp.arange(-1, len(world.traits)))
        return told[1:] - told[0]
