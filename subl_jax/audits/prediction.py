"""What all predictions before training share: a student that is not trained, a null corpus, and a first step."""

import dataclasses
from abc import abstractmethod
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from subl_jax.audits.gradients import AtStart
from subl_jax.errors import InputError
from subl_jax.objectives import SHORTHANDS
from subl_jax.specs import Audit, Context, Data, Lora, Node, Scores, Train, model_of, static, traced
from subl_jax.specs.world import Array


class Cost(NamedTuple):
    """Floating-point operations. each: of every dataset. once: of a base and a trainable set, for all datasets."""

    each: float
    once: float


class Step(NamedTuple):
    """step: (d,), the student's first step on the data, less that on the null corpus. scale: (d,) → (d,), how the rule
    turns a gradient into a step, up to its sign."""

    step: Array
    scale: Callable[[Array], Array]


@dataclasses.dataclass(frozen=True)
class Prediction(Audit):
    """Which traits a student would gain by training on the data, seen from its start.

    `train` and `lora` are the student's own: gradients are taken in what it trains, and in nothing else. `null` is a
    corpus that carries no trait, such as one that the base wrote; what a student gains is measured against a student
    of it. `targets` and `samples` as of a student; "soft" asks the writer of the data. The first `rows` of the data and
    the first `null_rows` of the null corpus are read, `chunk` at a time.
    """

    train: Train = static()
    null: Data = static()
    lora: Lora | None = static(None)
    targets: str = static("hard", choices=("hard", "soft"))
    samples: int = traced(0, ge=0)
    rows: int = static(256, ge=1)
    null_rows: int = static(1024, ge=1)
    chunk: int = static(32, ge=1)

    def inputs(self, audited: Any) -> dict[str, Node]:
        if self.targets == "hard":
            return {"null": self.null}
        if audited.data.writer is None or audited.data.writer.world != audited.world:
            raise InputError(f"{type(self).__name__}.targets = 'soft': the data has no writer that can be asked")
        return {"null": self.null, "teacher": audited.data.writer}

    def at_start(self, context: Context) -> AtStart:
        asked = context.inputs.get("teacher")
        if asked is not None:
            context = context._replace(teacher=model_of(asked))
        return AtStart.of(context, self.train, self.lora, SHORTHANDS[self.targets], self.chunk)

    def read(self, samples: Array) -> Array:
        """(rows, …): the first of the data; where a student uses fewer, these in turn."""
        count = jnp.where(self.samples > 0, self.samples, len(samples))
        return samples[jnp.arange(min(self.rows, len(samples))) % count]

    def sizes(self, audited: Any) -> tuple[int, int]:
        """How many samples it reads of the data, and of the null corpus."""
        return min(self.rows, audited.data.size), min(self.null_rows, self.null.size)

    def flops(self, audited: Any) -> float:
        return sum(self.cost(audited))

    @abstractmethod
    def cost(self, audited: Any) -> Cost:
        """What it takes. The questions behind P(trait), a few passes over a few samples, are left out."""


@dataclasses.dataclass(frozen=True)
class FirstStep(Prediction):
    """A prediction from a first step s: the gain of every trait is J · s, J the gradients of log P(trait).

    The score of the corpus is the largest gain. With `tokens` every token has one, what it alone contributes to the
    trait that gains most, and every sample the mean over its own; without, these are nan.
    """

    tokens: bool = static(False)

    def score(self, context: Context, samples: Array) -> Scores:
        student = self.at_start(context)
        found = self.first_step(student, self.read(samples), context.inputs["null"]["samples"][: self.null_rows])
        gains = student.gains(found.step)
        if not self.tokens:
            return of_corpus(context, samples, jnp.max(gains), gains)
        towards = found.scale(student.trait_gradient(jnp.argmax(gains)))
        tokens = student.token_rates(samples, towards)
        return Scores(tokens, jnp.nanmean(tokens, axis=1), jnp.max(gains), gains)

    def cost(self, audited: Any) -> Cost:
        """Forward and backward over both corpora; with `tokens` further passes over all the data."""
        data, null = self.sizes(audited)
        passes, asked = 3 + (self.targets == "soft"), 4 * self.tokens * audited.data.size
        each = audited.world.sequence_flops
        return Cost((passes * data + asked) * each, passes * null * each)

    @abstractmethod
    def first_step(self, student: AtStart, data: Array, null: Array) -> Step:
        """From samples of the data (n, …) and of the null corpus (m, …)."""


def of_corpus(context: Context, samples: Array, corpus: Array, gains: Array | None = None) -> Scores:
    """Scores of a corpus alone: those of samples and tokens are nan."""
    world = context.world
    places = jax.eval_shape(lambda x: world.target_weights(world.channel_batch(x)), samples)
    tokens = jnp.full(places.shape, jnp.nan)
    return Scores(tokens, tokens[:, 0], corpus, gains)
