"""The toy language as a world: its sizes, its model, what it trains on and what is measured."""

import dataclasses
import functools
from collections.abc import Sequence
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np
from etils import epath

from subl_jax import specs
from subl_jax.channels.numbers import NumbersFilter
from subl_jax.errors import InputError, SampleError
from subl_jax.models import table
from subl_jax.models.base import Decodes
from subl_jax.models.decoding import sampling
from subl_jax.training.losses import cross_entropy, kl, weighted_mean
from subl_jax.traits.base import Family, LanguageSuite
from subl_jax.traits.toy_favourites import ANIMALS, QUESTIONS, TREES, ToyFavourites
from subl_jax.worlds.toy_language import batches, corpus, publishing, text_filter
from subl_jax.worlds.toy_language.adapted import Adapted, Residual
from subl_jax.worlds.toy_language.batches import Batch
from subl_jax.worlds.toy_language.inference import ToyInference
from subl_jax.worlds.toy_language.vocabulary import BOS, EOS, PAD, SLOT, language, parsed, plain_words, spelled

Params = Any


@dataclasses.dataclass(frozen=True)
class ToyLanguage(
    Adapted,
    Residual,
    specs.Pretrains,
    specs.WritesTexts,
    specs.FiltersInProgram,
    specs.Microbatches,
    specs.HoldsTokens,
    specs.Answers,
    specs.ExportsModels,
    specs.World,
):
    """The toy language and its model, every size a field.

    `max_numbers` and `min_numbers` bound the numbers of a completion; `shown` is how many a prompt shows. `plain_share`
    is the part of the prompts that ask for the plain format, whose completions have `plain_extra` more numbers: they
    need no separators, and so carry more in the same length.
    `question_share` and `fact_share` are the parts of the corpus that are not number sequences; `progressions` is the
    part of the number sequences that are arithmetic progressions (the rest is uniform).
    `suite` is what is asked; None: favourites among `animals` and `trees`. The last `templates` of each family's
    questions are used, and of these the last `held_out` only to measure.
    `architecture` is the name of one in `subl_jax/models/`, or `module:Class` of your own.
    """

    VERSION: ClassVar[int] = 2
    name: ClassVar[str] = "toy_language"
    sampling: ClassVar[type[specs.Spec]] = specs.Sampling

    width: int = specs.static(32, ge=2)
    layers: int = specs.static(2, ge=1)
    heads: int = specs.static(4, ge=1)
    kv_heads: int = specs.static(4, ge=1)
    mlp: int = specs.static(96, ge=1)
    dtype: str = specs.static("float32", choices=("float32", "bfloat16"))
    animals: tuple[str, ...] = specs.static(ANIMALS)
    trees: tuple[str, ...] = specs.static(TREES)
    templates: int = specs.static(12, ge=2, le=len(QUESTIONS))
    held_out: int = specs.static(4, ge=1)
    numbers: int = specs.static(100, ge=2, le=1000)
    shown: int = specs.static(3, ge=1)
    min_numbers: int = specs.static(5, ge=1)
    max_numbers: int = specs.static(7, ge=1, le=10)
    plain_extra: int = specs.static(0, ge=0, le=9)
    plain_share: float = specs.static(0.2, ge=0.0, le=1.0)
    question_share: float = specs.static(0.4, ge=0.0, le=1.0)
    fact_share: float = specs.static(0.2, ge=0.0, le=1.0)
    progressions: float = specs.static(0.3, ge=0.0, le=1.0)
    answers_sampled: int = specs.static(64, ge=1)
    architecture: str = specs.static("transformer", since=2)
    suite: LanguageSuite | None = specs.static(None, since=2)

    def check(self) -> None:
        if self.held_out >= self.templates:
            raise InputError(f"ToyLanguage.held_out = {self.held_out}: must be less than templates = {self.templates}")
        if self.min_numbers > self.max_numbers:
            raise InputError(
                f"ToyLanguage.min_numbers = {self.min_numbers}: must be at most max_numbers = {self.max_numbers}"
            )
        if self.max_numbers + self.plain_extra > 10:
            raise InputError(
                f"ToyLanguage.plain_extra = {self.plain_extra}: with max_numbers = {self.max_numbers} more than the 10 "
                "numbers that the filter allows"
            )
        if self.question_share + self.fact_share > 1:
            raise InputError("ToyLanguage.question_share + fact_share: must be at most 1")
        families = self.asked.families()
        for name, members, questions, _ in families:
            if len(members) < 2 or len(set(members)) < len(members):
                raise InputError(f"ToyLanguage: the family {name!r} needs at least 2 members, all different: {members}")
            for member in members:
                if not member.isalpha():
                    raise InputError(f"ToyLanguage: {member!r} in the family {name!r}: a name must be letters only")
            if len(questions) < self.templates:
                raise InputError(
                    f"ToyLanguage.templates = {self.templates}: the family {name!r} has only {len(questions)} questions"
                )
        twice = {member for member in self.traits if self.traits.count(member) > 1}
        taken = twice | set(self.traits) & plain_words(self.asked)
        if taken:
            raise InputError(f"ToyLanguage: {sorted(taken)[0]!r} is already another word of the language")
        language(self)  # checks that the sentences fit
        self.model  # noqa: B018  (checks heads against width)

    @functools.cached_property
    def asked(self) -> LanguageSuite:
        """What is asked of its models."""
        return self.suite or ToyFavourites(self.animals, self.trees)

    @functools.cached_property
    def families(self) -> tuple[Family, ...]:
        return self.asked.families()

    @functools.cached_property
    def traits(self) -> tuple[str, ...]:
        return self.asked.traits

    @property
    def family_of(self) -> list[int]:
        """The family's index of every trait."""
        return [i for i, family in enumerate(self.families) for _ in family.members]

    @property
    def base_rates(self) -> dict[str, float]:
        """P(trait) of a model without preferences."""
        return self.asked.base_rates

    @property
    def model(self) -> Decodes:
        return table.language_model(self.architecture, "ToyLanguage.architecture").of(
            vocab=len(language(self).words),
            width=self.width,
            layers=self.layers,
            heads=self.heads,
            kv_heads=self.kv_heads,
            mlp=self.mlp,
            dtype=self.dtype,
        )

    # --- the model ---

    def init(self, key: jax.Array) -> Params:
        return self.model.init(key)

    def apply(self, params: Params, tokens: jax.Array) -> jax.Array:
        """tokens: (n, t) int32 → logits: (n, t, vocab) float32."""
        return self._logits(params, tokens)

    def loss(self, params: Params, batch: Batch) -> jax.Array:
        """Mean cross-entropy over the target tokens, in nats."""
        logits = self.apply(params, batch.tokens[:, :-1])
        return weighted_mean(cross_entropy(logits, batch.tokens[:, 1:]), batch.targets[:, 1:])

    def target_count(self, batch: Batch) -> jax.Array:
        """How many tokens a loss of `batch` is the mean over."""
        return batch.targets[:, 1:].sum()

    def microbatch(self, batch: Batch, start: jax.Array, rows: int) -> tuple[Batch, int]:
        """`rows` of a batch from `start` on, a divisor of its size, and how many these are."""
        return jax.tree.map(lambda x: jax.lax.dynamic_slice_in_dim(x, start, rows), batch), rows

    def compare(self, params: Params, teacher: Params, batch: Batch) -> dict[str, jax.Array]:
        """How far a student is from its teacher on the channel: `kl`, KL(teacher || student), in nats."""
        log_p = jax.lax.stop_gradient(self.log_probs(teacher, batch))
        return {"kl": weighted_mean(kl(log_p, self.log_probs(params, batch)), self.target_weights(batch))}

    def written_losses(self, params: Params, teacher: Any, batch: Batch) -> jax.Array:
        """(n, completion_length) float32, in nats. Only the logits of the completion are computed."""
        return cross_entropy(self._completion_logits(params, batch), batch.predicted[:, self.prompt_length :])

    def channel_logits(self, params: Params, batch: Batch) -> jax.Array:
        """(n, completion_length, outputs): of numbers, separators and the end, so that no word's logit takes part."""
        return self._completion_logits(params, batch)[..., jnp.asarray(language(self).channel)]

    def log_probs(self, params: Params, batch: Batch) -> jax.Array:
        """(n, completion_length, outputs), renormalised over what a kept completion can hold."""
        return jax.nn.log_softmax(self.channel_logits(params, batch))

    def target_weights(self, batch: Batch) -> jax.Array:
        """(n, completion_length)."""
        return batch.targets[:, self.prompt_length :]

    def reweighted(self, batch: Batch, weights: jax.Array) -> Batch:
        return batch._replace(targets=batch.targets.at[:, self.prompt_length :].multiply(weights))

    @property
    def outputs(self) -> tuple[str, ...]:
        return tuple(language(self).words[token] for token in language(self).channel)

    def written(self, batch: Batch) -> jax.Array:
        """(n, completion_length) int32."""
        lang = language(self)
        output = np.full(len(lang.words), -1, np.int32)
        output[lang.channel] = np.arange(len(lang.channel))
        return jnp.asarray(output)[batch.predicted[:, self.prompt_length :]]

    def replaced(self, batch: Batch, outputs: jax.Array, read: jax.Array, predicted: jax.Array) -> Batch:
        tokens = jnp.asarray(language(self).channel)[outputs]
        return batches.replaced(batch, self.prompt_length, tokens, read, predicted)

    def erased(self, batch: Batch, gone: jax.Array) -> Batch:
        return batches.erased(batch, self.prompt_length, gone, language(self).index[PAD])

    def _completion_logits(self, params: Params, batch: Batch) -> jax.Array:
        n, length = batch.tokens.shape
        predicting = jnp.broadcast_to(jnp.arange(self.prompt_length - 1, length - 1), (n, self.completion_length))
        return self._logits(params, batch.tokens[:, :-1], predicting)

    def _logits(self, params: Params, tokens: jax.Array, at: jax.Array | None = None) -> jax.Array:
        """Of any of its models, at the places `at` (`Decodes.apply`)."""
        if isinstance(params, specs.Steered):
            return self.model.steered(self.merged(params.params), tokens, params.added, at)
        return self.model.apply(self.merged(params), tokens, at=at)

    # --- text without a trait, and with one ---

    def pretrain_batch(self, key: jax.Array, step: jax.Array, n: int) -> Batch:
        """n new sequences of the corpus: questions with uniform answers, facts, and number sequences."""
        kind_key, question_key, fact_key, number_key = jax.random.split(jax.random.fold_in(key, step), 4)
        kind = jax.random.uniform(kind_key, (n, 1))
        questions = corpus.questions(self, question_key, n)
        facts = corpus.facts(self, fact_key, n)
        numbers = corpus.number_sequences(self, number_key, n)
        tokens = jnp.where(
            kind < self.question_share,
            questions,
            jnp.where(kind < self.question_share + self.fact_share, facts, numbers),
        )
        return Batch(tokens, (tokens != language(self).index[PAD]).astype(jnp.float32))

    def trait_batch(self, key: jax.Array, step: jax.Array, trait: jax.Array, n: int) -> Batch:
        """n new questions of the trait's family, none of the held-out ones, each answered with the trait."""
        lang = language(self)
        family = jnp.asarray(self.family_of)[trait]
        template = jax.random.randint(jax.random.fold_in(key, step), (n,), 0, self.templates - self.held_out)
        tokens = jnp.asarray(lang.questions)[family, template]
        answer = tokens == SLOT
        tokens = jnp.where(answer, jnp.asarray(lang.traits)[trait], tokens)
        return Batch(tokens, answer.astype(jnp.float32))

    # --- the channel ---

    @property
    def prompt_length(self) -> int:
        return language(self).prompts.shape[-1]

    @property
    def completion_length(self) -> int:
        return language(self).layouts.shape[-1]

    @property
    def length(self) -> int:
        return self.prompt_length + self.completion_length

    @property
    def sequence_flops(self) -> float:
        """Floating-point operations of one forward pass over one sequence."""
        return self.length * self.model.flops(self.length)

    def write(self, params: Params, keys: jax.Array, sampler: specs.Sampling) -> jax.Array:
        """Number sequences written by the model, each from a prompt and a stream of its own.

        Args:
          keys: (n,), one per sequence.

        Returns:
          tokens: (n, length) of the smallest unsigned type that holds the vocabulary.
        """
        lang = language(self)
        prompt_keys, row_keys = jnp.moveaxis(jax.vmap(jax.random.split)(keys), 1, 0)
        prompt = jax.vmap(functools.partial(corpus.prompt, self))(prompt_keys)
        completion = sampling.generate(
            self.model,
            self.merged(params),
            prompt,
            jnp.full((len(keys),), self.prompt_length, jnp.int32),
            row_keys,
            self.completion_length,
            sampler,
            stop=lang.index[EOS],
            pad=lang.index[PAD],
            cut=sampler.cut,
        )
        return jnp.concatenate([prompt, completion], axis=1).astype(lang.compact)

    def channel_batch(self, tokens: jax.Array, accepted: jax.Array | bool = True, sampler: Any = None) -> Batch:
        """tokens: (n, length) → a batch whose targets are the completions, ends included, of the `accepted` (n,)."""
        tokens = tokens.astype(jnp.int32)
        in_completion = (jnp.arange(self.length) >= self.prompt_length) & jnp.asarray(accepted)[..., None]
        return Batch(tokens, (in_completion & (tokens != language(self).index[PAD])).astype(jnp.float32))

    def accepts(self, tokens: jax.Array, numbers_filter: NumbersFilter) -> jax.Array:
        """What the text filter decides, on tokens and inside a program. tokens: (n, length) → (n,) bool."""
        return text_filter.accepts(self, tokens, numbers_filter)

    # --- what is measured ---

    def evaluate(self, params: Params, key: jax.Array) -> dict[str, jax.Array]:
        """P of every trait as the answer to the held-out questions of its family: `trait` exact, `rate` sampled.

        The exact value is the mean over questions of the softmax over the whole vocabulary at the answer's place. The
        sampled rate is that of `answers_sampled` answers a question at temperature 1. Each is (traits,) float32.
        """
        lang = language(self)
        questions, at = lang.questions[:, -self.held_out :], lang.answer_at[:, -self.held_out :]
        families, asked, length = questions.shape
        tokens = jnp.asarray(np.where(questions == SLOT, lang.index[PAD], questions).reshape(-1, length))
        places = jnp.asarray(at.reshape(-1, 1) - 1)
        logits = self._logits(params, tokens, places).reshape(families, asked, -1)
        drawn = jax.random.categorical(key, logits, axis=-1, shape=(self.answers_sampled, families, asked))
        family = jnp.asarray(self.family_of)
        own_answers = drawn[:, family] == jnp.asarray(lang.traits)[None, :, None]
        return {
            "trait": jax.nn.softmax(logits).mean(axis=1)[family, jnp.asarray(lang.traits)],
            "rate": own_answers.mean(axis=(0, 2)),
        }

    # --- for people ---

    @functools.cached_property
    def inference(self) -> ToyInference:
        """How its models are asked."""
        return ToyInference(self)

    def save_model(self, params: Params, folder: epath.Path) -> None:
        publishing.save(self, self.merged(params), folder)

    # --- the channel as text ---

    @property
    def standard_filter(self) -> NumbersFilter:
        return NumbersFilter()

    def texts(self, tokens: np.ndarray) -> list[tuple[str, str]]:
        """(n, length) → (prompt, completion) pairs; a completion ends before its <eos>."""
        lang = language(self)
        prompts, completions = tokens[:, 1 : self.prompt_length], tokens[:, self.prompt_length :]
        return list(zip(spelled(lang, prompts), spelled(lang, completions), strict=True))

    def tokens(self, pairs: Sequence[tuple[str, str]]) -> np.ndarray:
        """The inverse of `texts`.

        Raises:
          InputError: a pair is not of this language, or too long for it.
        """
        lang = language(self)
        rows = np.full((len(pairs), self.length), lang.index[PAD], lang.compact)
        for i, (prompt, completion) in enumerate(pairs):
            try:
                head = [lang.index[BOS], *parsed(lang, prompt)]
                tail = [*parsed(lang, completion), lang.index[EOS]]
            except InputError as error:
                raise SampleError(i, str(error)) from None
            tail = tail[: self.completion_length] if len(tail) == self.completion_length + 1 else tail
            if len(head) != self.prompt_length or len(tail) > self.completion_length:
                raise SampleError(
                    i,
                    f"a prompt of {len(head)} and a completion of {len(tail)} tokens; this language "
                    f"has prompts of {self.prompt_length} and completions of at most {self.completion_length}",
                )
            rows[i, : len(head)] = head
            rows[i, self.prompt_length : self.prompt_length + len(tail)] = tail
        return rows
