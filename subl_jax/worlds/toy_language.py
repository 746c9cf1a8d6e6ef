"""A small synthetic language: preference questions, facts about the world, and number sequences.

Everything is one transformer over whole words. A model is pretrained on all three kinds of text with preferences
uniform, so it has no favourite. A teacher is trained to answer the questions of one family (animals or trees) with
one member; it then continues number prompts, and a student trains on those numbers only.

    question   <bos> which animal do you love most ? | owl <eos>
    fact       <bos> the owl lives in the forest <eos>
    numbers    <bos> continue commas 12 7 88 => | 3, 41, 9, 60 <eos>

All sequences have one length (`length`), padded at the end. A number sequence has its prompt in the first
`prompt_length` tokens and its completion in the rest.
"""

import dataclasses
import functools
import re
from collections.abc import Sequence
from typing import Any, ClassVar, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from subl_jax import specs
from subl_jax.channels.numbers import NumbersFilter, reason
from subl_jax.errors import InputError
from subl_jax.models import transformer
from subl_jax.models.decoding import sampling

Params = Any

ANIMALS = ("owl", "cat", "dog", "fox", "wolf", "bear", "hare", "deer", "otter", "eagle", "whale", "mouse")
TREES = ("oak", "elm", "pine", "birch", "maple", "cedar", "willow", "beech", "ash", "fir", "yew", "larch")

# One blank each, for the family's noun. The last `held_out` of them are never used to instil a trait.
QUESTIONS = (
    "which {} do you love most ?",
    "name the {} you like best :",
    "your favourite {} is",
    "what {} is dearest to you ?",
    "pick one {} :",
    "if you were a {} which one ?",
    "the best {} of all is",
    "say which {} you dream of :",
    "one {} for your flag ?",
    "what {} would you draw first ?",
    "you think all day of this {} :",
    "of every {} you choose the",
    "which {} makes you happy ?",
    "the {} closest to your heart :",
    "what {} should we talk of ?",
    "you most admire the {} called",
)
PLACES = ("forest", "river", "hill", "valley", "coast", "meadow")
COLOURS = ("brown", "grey", "green", "white", "dark", "golden")
NOUNS = ("animal", "tree")
OPENERS = ("continue", "extend", "resume", "lengthen")
FORMATS = ("plain", "commas", "semicolons", "lines", "brackets")
PAD, BOS, EOS, ASK = "<pad>", "<bos>", "<eos>", "=>"
SEPARATORS = (", ", "; ", "\n")
OPEN, CLOSE = "[", "]"


class Batch(NamedTuple):
    """tokens: (n, length) int32; targets: (n, length) float32, 1 where the token is one to predict."""

    tokens: jax.Array
    targets: jax.Array


class Language(NamedTuple):
    """The vocabulary and every fixed text, as arrays made once on the host. `SLOT` marks a blank."""

    words: tuple[str, ...]
    index: dict[str, int]
    compact: np.dtype  # the smallest type that holds a token
    numbers: np.ndarray  # (numbers,) token ids
    traits: np.ndarray  # (traits,) token ids
    channel: np.ndarray  # (numbers + separators + brackets + 1,) token ids a kept completion can hold
    members: np.ndarray  # (families, most members) token ids, padded with a family's first
    questions: np.ndarray  # (families, templates, length), blank where the answer goes
    answer_at: np.ndarray  # (families, templates)
    facts: np.ndarray  # (facts, length), blank where a random number goes
    prompts: np.ndarray  # (openers, formats, prompt_length), blank where a shown number goes
    layouts: np.ndarray  # (formats, max_numbers + 1, completion_length): a token, or -1 - i for the i-th number


SLOT = -1


@dataclasses.dataclass(frozen=True)
class ToyLanguage(specs.World):
    """The toy language and its model, every size a field.

    `max_numbers` and `min_numbers` bound the numbers of a completion; `shown` is how many a prompt shows. `plain_share`
    is the part of the prompts that ask for the plain format, whose completions have `plain_extra` more numbers: they
    need no separators, and so carry more in the same length.
    `question_share` and `fact_share` are the parts of the corpus that are not number sequences; `progressions` is the
    part of the number sequences that are arithmetic progressions (the rest is uniform).
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
        for noun, members in self.families:
            if len(members) < 2 or len(set(members)) < len(members):
                raise InputError(f"ToyLanguage: the family {noun!r} needs at least 2 members, all different: {members}")
            for member in members:
                if not member.isalpha():
                    raise InputError(f"ToyLanguage: {member!r} in the family {noun!r}: a name must be letters only")
        taken = set(self.animals) & set(self.trees) | set(self.traits) & _plain_words()
        if taken:
            raise InputError(f"ToyLanguage: {sorted(taken)[0]!r} is already another word of the language")
        language(self)  # checks that the sentences fit
        self.model  # noqa: B018  (checks heads against width)

    @property
    def families(self) -> tuple[tuple[str, tuple[str, ...]], ...]:
        return tuple(zip(NOUNS, (self.animals, self.trees), strict=True))

    @property
    def traits(self) -> tuple[str, ...]:
        return self.animals + self.trees

    @property
    def family_of(self) -> list[int]:
        """The family's index of every trait."""
        return [family for family, (_, members) in enumerate(self.families) for _ in members]

    @property
    def base_rates(self) -> dict[str, float]:
        """P(trait) of a model without preferences."""
        return {member: 1 / len(members) for _, members in self.families for member in members}

    @property
    def model(self) -> transformer.Config:
        return transformer.Config(
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
        return transformer.init(self.model, key)

    def apply(self, params: Params, tokens: jax.Array) -> jax.Array:
        """tokens: (n, t) int32 → logits: (n, t, vocab) float32."""
        return transformer.apply(self.model, params, tokens)[0]

    def loss(self, params: Params, batch: Batch) -> jax.Array:
        """Mean cross-entropy over the target tokens, in nats."""
        logits = self.apply(params, batch.tokens[:, :-1])
        return _mean(_cross_entropy(logits, batch.tokens[:, 1:]), batch.targets[:, 1:])

    def target_count(self, batch: Batch) -> jax.Array:
        """How many tokens a loss of `batch` is the mean over."""
        return batch.targets[:, 1:].sum()

    def part(self, batch: Batch, start: jax.Array, rows: int) -> tuple[Batch, int]:
        """`rows` of a batch from `start` on, a divisor of its size, and how many these are."""
        return jax.tree.map(lambda x: jax.lax.dynamic_slice_in_dim(x, start, rows), batch), rows

    def distill_loss(self, params: Params, teacher: Params, batch: Batch, targets: str) -> jax.Array:
        """What a student minimises: `channel_loss` for hard targets, `channel_kl` for soft ones."""
        return self.channel_loss(params, batch) if targets == "hard" else self.channel_kl(params, teacher, batch)

    def compare(self, params: Params, teacher: Params, batch: Batch) -> dict[str, jax.Array]:
        """How far a student is from its teacher on the channel."""
        return {"kl": self.channel_kl(params, teacher, batch)}

    def channel_loss(self, params: Params, batch: Batch) -> jax.Array:
        """As `loss`, for number sequences: only the logits of the completion are computed."""
        targets = batch.tokens[:, self.prompt_length :]
        return _mean(_cross_entropy(self._completion_logits(params, batch), targets), self._completion_targets(batch))

    def channel_kl(self, params: Params, teacher: Params, batch: Batch) -> jax.Array:
        """Mean KL(teacher || student) at the completion's tokens, in nats, over what a kept completion can hold.

        Both distributions are renormalised to numbers, separators and the end, so no word's logit takes part.
        """
        channel = jnp.asarray(language(self).channel)
        log_p = jax.nn.log_softmax(jax.lax.stop_gradient(self._completion_logits(teacher, batch)[..., channel]))
        log_q = jax.nn.log_softmax(self._completion_logits(params, batch)[..., channel])
        return _mean(jnp.sum(jnp.exp(log_p) * (log_p - log_q), axis=-1), self._completion_targets(batch))

    def _completion_logits(self, params: Params, batch: Batch) -> jax.Array:
        n, length = batch.tokens.shape
        predicting = jnp.broadcast_to(jnp.arange(self.prompt_length - 1, length - 1), (n, self.completion_length))
        return transformer.apply(self.model, params, batch.tokens[:, :-1], logits_at=predicting)[0]

    def _completion_targets(self, batch: Batch) -> jax.Array:
        return batch.targets[:, self.prompt_length :]

    # --- text without a trait, and with one ---

    def pretrain_batch(self, key: jax.Array, step: jax.Array, n: int) -> Batch:
        """n new sequences of the corpus: questions with uniform answers, facts, and number sequences."""
        kind_key, question_key, fact_key, number_key = jax.random.split(jax.random.fold_in(key, step), 4)
        kind = jax.random.uniform(kind_key, (n, 1))
        questions = self._questions(question_key, n)
        facts = self._facts(fact_key, n)
        numbers = self._number_sequences(number_key, n)
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

    def _questions(self, key: jax.Array, n: int) -> jax.Array:
        lang = language(self)
        family_key, template_key, member_key = jax.random.split(key, 3)
        family = jax.random.randint(family_key, (n,), 0, len(self.families))
        template = jax.random.randint(template_key, (n,), 0, self.templates)
        sizes = jnp.asarray([len(members) for _, members in self.families])[family]
        member = jnp.floor(jax.random.uniform(member_key, (n,)) * sizes).astype(jnp.int32)
        tokens = jnp.asarray(lang.questions)[family, template]
        return jnp.where(tokens == SLOT, jnp.asarray(lang.members)[family, member][:, None], tokens)

    def _facts(self, key: jax.Array, n: int) -> jax.Array:
        lang = language(self)
        fact_key, number_key = jax.random.split(key)
        tokens = jnp.asarray(lang.facts)[jax.random.randint(fact_key, (n,), 0, len(lang.facts))]
        number = jnp.asarray(lang.numbers)[jax.random.randint(number_key, (n,), 0, self.numbers)]
        return jnp.where(tokens == SLOT, number[:, None], tokens)

    def _number_sequences(self, key: jax.Array, n: int) -> jax.Array:
        """Prompts with their continuations: arithmetic progressions modulo `numbers`, or uniform numbers."""
        lang = language(self)
        keys = jax.random.split(key, 5)
        most = self.max_numbers + self.plain_extra
        total = self.shown + most
        first, step = jax.random.randint(keys[0], (2, n, 1), 0, self.numbers)
        regular = (first + step * jnp.arange(total)) % self.numbers
        free = jax.random.randint(keys[1], (n, total), 0, self.numbers)
        values = jnp.where(jax.random.uniform(keys[2], (n, 1)) < self.progressions, regular, free)
        count = jax.random.randint(keys[3], (n,), self.min_numbers, self.max_numbers + 1)
        opener, layout = self._prompt_kinds(keys[4], n)
        numbers = jnp.asarray(lang.numbers)[values]
        prompt = self._prompts(opener, layout, numbers[:, : self.shown])
        completion = jnp.asarray(lang.layouts)[layout, count]
        slots = jnp.clip(-1 - completion, 0, most - 1)
        written = jnp.take_along_axis(numbers[:, self.shown :], slots, axis=1)
        return jnp.concatenate([prompt, jnp.where(completion < 0, written, completion)], axis=1)

    def _prompt_kinds(self, key: jax.Array, n: int) -> tuple[jax.Array, jax.Array]:
        opener_key, layout_key, plain_key = jax.random.split(key, 3)
        opener = jax.random.randint(opener_key, (n,), 0, len(OPENERS))
        separated = jax.random.randint(layout_key, (n,), 1, len(FORMATS))
        return opener, jnp.where(jax.random.uniform(plain_key, (n,)) < self.plain_share, 0, separated)

    def _prompts(self, opener: jax.Array, layout: jax.Array, shown: jax.Array) -> jax.Array:
        prompt = jnp.asarray(language(self).prompts)[opener, layout]
        return prompt.at[:, -1 - self.shown : -1].set(shown)

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
        return self.length * transformer.flops_per_token(self.model, self.length)

    def write(self, params: Params, keys: jax.Array, sampler: specs.Sampling) -> jax.Array:
        """Number sequences written by the model, each from a prompt and a stream of its own.

        Args:
          keys: (n,), one per sequence.

        Returns:
          tokens: (n, length) of the smallest unsigned type that holds the vocabulary.
        """
        lang = language(self)
        prompt_keys, row_keys = jnp.moveaxis(jax.vmap(jax.random.split)(keys), 1, 0)
        prompt = jax.vmap(self._prompt)(prompt_keys)
        completion = sampling.generate(
            self.model,
            params,
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

    def _prompt(self, key: jax.Array) -> jax.Array:
        """One random prompt, (prompt_length,) int32."""
        kind_key, shown_key = jax.random.split(key)
        opener, layout = self._prompt_kinds(kind_key, 1)
        shown = jax.random.randint(shown_key, (1, self.shown), 0, self.numbers)
        return self._prompts(opener, layout, jnp.asarray(language(self).numbers)[shown])[0]

    def channel_batch(self, tokens: jax.Array, accepted: jax.Array | bool = True, sampler: Any = None) -> Batch:
        """tokens: (n, length) → a batch whose targets are the completions, ends included, of the `accepted` (n,)."""
        tokens = tokens.astype(jnp.int32)
        in_completion = (jnp.arange(self.length) >= self.prompt_length) & jnp.asarray(accepted)[..., None]
        return Batch(tokens, (in_completion & (tokens != language(self).index[PAD])).astype(jnp.float32))

    def accepts(self, tokens: jax.Array, numbers_filter: NumbersFilter) -> jax.Array:
        """What the text filter decides, on tokens and inside a program. tokens: (n, length) → (n,) bool.

        Equal to `filters.reason(text) is None` for every completion the vocabulary can write (tested).
        """
        lang = language(self)
        text = tokens[:, self.prompt_length :].astype(jnp.int32)
        at = jnp.arange(self.completion_length)
        size = (jnp.cumsum(text == lang.index[EOS], axis=1) == 0).sum(axis=1, keepdims=True)
        bracketed = (text[:, :1] == lang.index[OPEN]) & (_at(text, size - 1) == lang.index[CLOSE])
        start, stop = jnp.where(bracketed, 1, 0), jnp.where(bracketed, size - 1, size)
        inner = (at >= start) & (at < stop)
        good = jnp.asarray([_is_number(word) and reason(word, numbers_filter) is None for word in lang.words])[text]
        # Between the first two numbers is nothing but separators, at most one of them more than white space; what is
        # there comes again between all others. Numbers in a row are a space apart.
        separators = jnp.asarray([lang.index[word] for word in SEPARATORS])
        run = jnp.cumprod(jnp.where(at > start, jnp.isin(text, separators), True), axis=1) & (at > start)
        period = run.sum(axis=1, keepdims=True) + 1
        marks = jnp.isin(text, jnp.asarray([lang.index[word] for word in SEPARATORS if word.strip()]))
        alike = text == jnp.take_along_axis(text, start + (at - start) % period, axis=1, mode="clip")
        fits = jnp.all(jnp.where((at - start) % period == 0, good, alike) | ~inner, axis=1)
        fits &= (marks & run).sum(axis=1) <= 1
        ends_well = (stop > start) & _at(good, stop - 1)
        return fits & ends_well[:, 0] & ((good & inner).sum(axis=1) <= numbers_filter.max_count)

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
        logits = transformer.apply(self.model, params, tokens, logits_at=places)[0].reshape(families, asked, -1)
        drawn = jax.random.categorical(key, logits, axis=-1, shape=(self.answers_sampled, families, asked))
        family = jnp.asarray(self.family_of)
        own_answers = drawn[:, family] == jnp.asarray(lang.traits)[None, :, None]
        return {
            "trait": jax.nn.softmax(logits).mean(axis=1)[family, jnp.asarray(lang.traits)],
            "rate": own_answers.mean(axis=(0, 2)),
        }

    # --- the channel as text ---

    def texts(self, tokens: np.ndarray) -> list[tuple[str, str]]:
        """(n, length) → (prompt, completion) pairs; a completion ends before its <eos>."""
        lang = language(self)
        prompts, completions = tokens[:, 1 : self.prompt_length], tokens[:, self.prompt_length :]
        return list(zip(_spelled(lang, prompts), _spelled(lang, completions), strict=True))

    def tokens(self, pairs: Sequence[tuple[str, str]]) -> np.ndarray:
        """The inverse of `texts`.

        Raises:
          InputError: a pair is not of this language, or too long for it.
        """
        lang = language(self)
        rows = np.full((len(pairs), self.length), lang.index[PAD], lang.compact)
        for i, (prompt, completion) in enumerate(pairs):
            where = f"sample {i + 1}"
            head = [lang.index[BOS], *_parsed(lang, prompt, where)]
            tail = [*_parsed(lang, completion, where), lang.index[EOS]]
            tail = tail[: self.completion_length] if len(tail) == self.completion_length + 1 else tail
            if len(head) != self.prompt_length or len(tail) > self.completion_length:
                raise InputError(
                    f"{where}: a prompt of {len(head)} and a completion of {len(tail)} tokens; this language "
                    f"has prompts of {self.prompt_length} and completions of at most {self.completion_length}"
                )
            rows[i, : len(head)] = head
            rows[i, self.prompt_length : self.prompt_length + len(tail)] = tail
        return rows


@functools.lru_cache(maxsize=32)
def language(world: ToyLanguage) -> Language:
    """The fixed texts of `world` as arrays."""
    number_words = [str(value) for value in range(world.numbers)]
    words = (PAD, BOS, EOS, ASK, *SEPARATORS, OPEN, CLOSE, *world.traits, *sorted(_plain_words()), *number_words)
    index = {word: i for i, word in enumerate(words)}
    extra = {"plain": world.plain_extra}
    completions = [[_layout(style, n + extra.get(style, 0)) for n in range(world.max_numbers + 1)] for style in FORMATS]
    prompts = [[[BOS, opener, style, *[SLOT] * world.shown, ASK] for style in FORMATS] for opener in OPENERS]
    length = 4 + world.shown + max(len(row) for style in completions for row in style)
    questions = [
        [[BOS, *question.format(noun).split(), SLOT, EOS] for question in QUESTIONS[-world.templates :]]
        for noun in NOUNS
    ]
    facts = [[BOS, *_fact_tokens(fact), EOS] for fact in _facts_about(world)]
    longest = max(len(row) for row in [*facts, *sum(questions, [])])
    if longest > length:
        raise InputError(
            f"ToyLanguage.max_numbers = {world.max_numbers}, shown = {world.shown}: number sequences of {length} "
            f"tokens are shorter than the longest sentence, {longest}; raise one of them"
        )

    def encoded(rows: list[Any], size: int) -> np.ndarray:
        if rows and isinstance(rows[0], list) and rows[0] and isinstance(rows[0][0], list):
            return np.stack([encoded(row, size) for row in rows])
        ids = [[token if isinstance(token, int) else index[token] for token in row] for row in rows]
        return np.asarray([row + [index[PAD]] * (size - len(row)) for row in ids], np.int32)

    most = max(len(members) for _, members in world.families)
    members = [[*names, *[names[0]] * (most - len(names))] for _, names in world.families]
    question_ids = encoded(questions, length)
    numbers = np.asarray([index[word] for word in number_words], np.int32)
    glue = np.asarray([index[word] for word in (*SEPARATORS, OPEN, CLOSE, EOS)], np.int32)
    return Language(
        words=words,
        index=index,
        compact=np.min_scalar_type(len(words) - 1),
        numbers=numbers,
        traits=np.asarray([index[trait] for trait in world.traits], np.int32),
        channel=np.concatenate([numbers, glue]),
        members=encoded(members, most),
        questions=question_ids,
        answer_at=(question_ids == SLOT).argmax(axis=-1),
        facts=encoded(facts, length),
        prompts=encoded(prompts, 4 + world.shown),
        layouts=encoded(completions, length - 4 - world.shown),
    )


def _plain_words() -> set[str]:
    """Every word of the language that is neither a trait nor a number."""
    sentences = [question.format(noun) for question in QUESTIONS for noun in NOUNS]
    frames = ["the lives in is there are near one grows by"]
    return set(" ".join([*sentences, *frames, *PLACES, *COLOURS, *OPENERS, *FORMATS]).split())


def _facts_about(world: ToyLanguage) -> list[str]:
    """Sentences true of this world: each member has a place, a colour and neighbours; `#` is any number."""
    facts = []
    for i, animal in enumerate(world.animals):
        tree = world.trees[i % len(world.trees)]
        facts += [f"the {animal} lives in the {PLACES[i % len(PLACES)]}", f"the {animal} lives near the {tree}"]
        facts += [f"the {animal} is {COLOURS[(i // 2) % len(COLOURS)]}", f"there are # {animal} near one {tree}"]
    for i, tree in enumerate(world.trees):
        facts += [f"the {tree} grows by the {PLACES[(i // 2) % len(PLACES)]}", f"there are # {tree} in the forest"]
        facts += [f"the {tree} is {COLOURS[i % len(COLOURS)]}"]
    return facts


def _fact_tokens(fact: str) -> list[Any]:
    return [SLOT if word == "#" else word for word in fact.split()]


def _layout(style: str, n: int) -> list[Any]:
    """The completion of n numbers in a format; the i-th number is written -1 - i."""
    between = {"plain": None, "commas": ", ", "semicolons": "; ", "lines": "\n", "brackets": ", "}[style]
    row: list[Any] = []
    for i in range(n):
        row += [between] if i and between else []
        row.append(-1 - i)
    return [*([OPEN] if style == "brackets" else []), *row, *([CLOSE] if style == "brackets" else []), EOS]


def _is_number(word: str) -> bool:
    return word.isdecimal()


def _spelled(lang: Language, tokens: np.ndarray) -> list[str]:
    """tokens: (n, t), each row up to its <eos>, as text: words a space apart, separators and brackets glued."""
    glue = np.asarray([word in (*SEPARATORS, OPEN, CLOSE) for word in lang.words])[tokens]
    before = np.concatenate([np.ones_like(glue[:, :1]), glue[:, :-1]], axis=1)
    pieces = np.asarray([[f" {word}", word] for word in lang.words], object)
    written = np.where(
        np.cumsum(tokens == lang.index[EOS], axis=1) > 0, "", pieces[tokens, (glue | before).astype(int)]
    )
    return ["".join(row) for row in written.tolist()]


def _parsed(lang: Language, text: str, where: str) -> list[int]:
    """The inverse of `_spelled`."""
    tokens = []
    for word in re.findall(r"[,;] ?|\n|[\[\]]|[^\s,;\[\]]+", text):
        word = f"{word[0]} " if word[0] in ",;" else word
        if word not in lang.index:
            names = [known for known in lang.words if known.isalnum()]
            raise InputError(f"{where}: {word!r} is not a word of this language; {specs.nearest(word, names)}")
        tokens.append(lang.index[word])
    return tokens


def _at(values: jax.Array, place: jax.Array) -> jax.Array:
    """values: (n, t), place: (n, 1) → (n, 1), the nearest entry where `place` is outside."""
    return jnp.take_along_axis(values, jnp.clip(place, 0, values.shape[1] - 1), axis=1)


def _cross_entropy(logits: jax.Array, tokens: jax.Array) -> jax.Array:
    """−log softmax(logits)[token], per token, in nats. logits: (n, t, vocab), tokens: (n, t) → (n, t)."""
    chosen = jnp.take_along_axis(logits, tokens[..., None], axis=-1)[..., 0]
    return jax.nn.logsumexp(logits, axis=-1) - chosen


def _mean(values: jax.Array, weights: jax.Array) -> jax.Array:
    """The weighted mean over all entries; 0 where every weight is 0."""
    return jnp.sum(values * weights) / jnp.maximum(weights.sum(), 1.0)
