"""The dearest prediction: the first steps of the training itself, on the data and on the null corpus."""

import dataclasses
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import optax

from subl_jax.audits.gradients import AtStart
from subl_jax.audits.prediction import Cost, Prediction, of_corpus
from subl_jax.specs import Context, Scores, static
from subl_jax.specs.world import Array
from subl_jax.training import optim
from subl_jax.training.shuffling import epoch_rows


@dataclasses.dataclass(frozen=True)
class Rollout(Prediction):
    """How much more of every trait a student has after `steps` steps on the data than one on the null corpus, in nats.

    Rates are those of the student's whole schedule. All samples are trained on, whatever `rows` and `null_rows` say, a
    batch at once. It has no scores of tokens and samples (nan); that of the corpus is the largest gain.
    """

    kind: ClassVar[str] = "rollout"

    steps: int = static(20, ge=1)

    def score(self, context: Context, samples: Array) -> Scores:
        student, null = self.at_start(context), context.inputs["null"]["samples"]
        gains = self._after(student, samples, self.samples) - self._after(student, null, 0)
        return of_corpus(context, samples, jnp.max(gains), gains)

    def cost(self, audited: Any) -> Cost:
        """Forward and backward over every batch, of the data and of the null corpus."""
        passes = (3 + (self.targets == "soft")) * self.steps * self.train.batch * audited.world.sequence_flops
        return Cost(passes, passes)

    def _after(self, student: AtStart, samples: Array, first: Array | int) -> Array:
        """(traits,): log P of every trait after the steps on the `first` of the samples; 0: on all."""
        context = student.context
        rule = optim.transform(self.train, context.world.frozen)
        params = student.whole(student.at)

        def loss(params: Any, batch: Any) -> Array:
            return student.objective.loss(context, params, batch)

        def update(step: Array, state: tuple[Any, Any]) -> tuple[Any, Any]:
            params, moments = state
            count = jnp.where(jnp.asarray(first) > 0, first, len(samples))
            rows = epoch_rows(context.key, step, self.train.batch, count)
            gradient = jax.grad(loss)(params, context.world.channel_batch(samples[rows]))
            change, moments = rule.update(gradient, moments, params)
            return optax.apply_updates(params, change), moments

        params, _ = jax.lax.fori_loop(0, self.steps, update, (params, rule.init(params)))
        return jnp.log(context.world.evaluate(params, context.key)["trait"])
