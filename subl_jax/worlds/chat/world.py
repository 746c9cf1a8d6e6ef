"""A checkpoint as a world: its fields, its parameters, its losses, and where the rest is done."""

import dataclasses
import functools
from collections.abc import Sequence
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np

from subl_jax import specs
from subl_jax.channels import automaton
from subl_jax.channels.base import Channel, Decodable, Filter
from subl_jax.channels.numbers import Numbers
from subl_jax.errors import InputError
from subl_jax.models import lora, transformer
from subl_jax.pretrained import weights
from subl_jax.storage import jsonl
from subl_jax.training.losses import cross_entropy, kl, weighted_mean
from subl_jax.traits.base import ChatSuite
from subl_jax.traits.favourites import Favourites
from subl_jax.worlds.chat import batches, evaluation, publishing, reading, started, writing
from subl_jax.worlds.chat import texts as chat_texts
from subl_jax.worlds.chat.batches import Batch, of_answers
from subl_jax.worlds.chat.people import ForPeople

Params = Any


@dataclasses.dataclass(frozen=True)
class ChatSampling(specs.Sampling):
    """As `Sampling`, for continuations of many prompts by `rows` at a time.

    `only` restricts what is drawn to what that filter keeps: no token is drawn that could not go on to a kept sample.
    """

    rows: int = specs.static(32, ge=1)
    only: Filter | None = specs.static(None)


@dataclasses.dataclass(frozen=True)
class Pretrained(
    specs.WritesTexts,
    specs.Notes,
    specs.Microbatches,
    specs.TakesAdapters,
    specs.TakesSystemPrompts,
    specs.OwnGeometry,
    ForPeople,
    specs.World,
):
    """A chat model of a checkpoint. Make one with `of`, which looks at the checkpoint.

    Fields:
      model: a folder, a GGUF file, `smollm2`, or the name of a repository on the Hugging Face hub.
      fingerprint: of its content.
      dtype: of the weights and the compute; what is trained is float32 all the same.
      remat: what a gradient computes again instead of keeping it (`transformer.Config`).
      attention: how it is computed (`transformer.Config`). Changes no more than rounding.
      room: a part of a batch (`Train.accumulate`) is computed on this share of its places, as the rest is padding. A
        sample for which there is no room goes to a further part.
      answer_room: likewise the share of the answers' places whose logits are computed.
      keep, sigma, noise_seed: the weights used are keep * W + sigma * rms(W) * normal noise, for every matrix. (1, 0):
        the checkpoint; (1, s) a base that s moves away from it; (0, 1) one of the same scale that knows nothing.
      system: the system prompt of everything but a told teacher; None leaves it to the template, in all of it.
      animals, trees: the traits. told_as: other system prompts than the bank's, as "trait: text".
      prompts, prompt_seed: how many different number prompts there are, and the seed they are made from.
      prompt_tokens, completion_tokens: the room for each.
      questions: how many of each family's are asked; questions_file: a file that all are asked of instead, and
        questions_sha256 its content.
      numbers_in_front: ask them once more with a line of numbers in front.
      answers_sampled, answer_tokens: how many answers a question are drawn, and how long they can be.
      items_file, items_sha256: multiple-choice questions to check the model's ability on.
      probed: how many samples a student is compared with its teacher on.
      channel: what teachers are asked to write.
      suite: what is asked; None: favourites among `animals` and `trees`.
      adapter, adapter_sha256: a folder of `peft` that bases start from, and its content. adapter_live: it is not merged
        into the weights, but what students train on (their `lora` is `world.adapter_lora`).
      training_prompt, evaluation_prompt: what a number prompt and a question look like, rendered.
    """

    name: ClassVar[str] = "pretrained"
    sampling: ClassVar[type[specs.Spec]] = ChatSampling
    frozen: ClassVar[tuple[str, ...]] = lora.FROZEN
    theory: ClassVar[bool] = False

    model: str = specs.label("smollm2")
    fingerprint: str = specs.static("")
    dtype: str = specs.static("float32", choices=("float32", "bfloat16"))
    remat: str = specs.static("dots", choices=("none", "dots", "all"))
    # A label, as what machine computed is no part of what was computed.
    attention: str = specs.label("auto", choices=("plain", "auto"))
    room: float = specs.static(0.75, gt=0.0, le=1.0)
    answer_room: float = specs.static(0.5, gt=0.0, le=1.0)
    keep: float = specs.static(1.0, ge=0.0)
    sigma: float = specs.static(0.0, ge=0.0)
    noise_seed: int = specs.static(0, ge=0)
    system: str | None = specs.static(None)
    animals: tuple[str, ...] = specs.static(())
    trees: tuple[str, ...] = specs.static(())
    told_as: tuple[str, ...] = specs.static(())
    prompts: int = specs.static(2048, ge=1)
    prompt_seed: int = specs.static(0, ge=0)
    prompt_tokens: int = specs.static(96, ge=1)
    completion_tokens: int = specs.static(64, ge=1)
    questions: int = specs.static(50, ge=1)
    questions_file: str = specs.label("")
    questions_sha256: str = specs.static("")
    numbers_in_front: bool = specs.static(False)
    answers_sampled: int = specs.static(2, ge=0)
    answer_tokens: int = specs.static(8, ge=1)
    items_file: str = specs.label("")
    items_sha256: str = specs.static("")
    probed: int = specs.static(8, ge=1)
    training_prompt: str = specs.host("")
    evaluation_prompt: str = specs.host("")
    channel: Channel = specs.static(Numbers(), since=2)
    suite: ChatSuite | None = specs.static(None, since=2)
    adapter: str = specs.label("", since=3)
    adapter_sha256: str = specs.static("", since=3)
    adapter_live: bool = specs.static(False, since=3)

    def check(self) -> None:
        self.asked  # noqa: B018  (checks the traits)

    @classmethod
    def of(cls, model: str, **fields: Any) -> "Pretrained":
        """The world of a checkpoint, with what identifies it and how it renders prompts filled in.

        Raises:
          InputError: no such checkpoint, a model of an unknown kind, texts that do not fit, or an unreadable file.
        """
        checkpoint = weights.open_checkpoint(model)
        hashes = {}
        for name in ("questions", "items"):
            if file := fields.get(f"{name}_file"):
                try:
                    hashes[f"{name}_sha256"] = jsonl.file_sha256(file)
                except OSError as error:
                    raise InputError(f"{file}: cannot be read: {error.strerror or error}") from None
        if fields.get("questions_file"):
            fields["questions"] = len(chat_texts.banks.read_questions(fields["questions_file"]))
        if fields.get("adapter"):
            hashes["adapter_sha256"] = started.sha256_of(fields["adapter"])
        world = cls(model=model, fingerprint=checkpoint.fingerprint, **hashes, **fields)
        started.check(world)
        texts = chat_texts.texts_of(world)
        window, longest = world.config.window, _longest(world)
        if window is not None and longest > window:
            raise InputError(f"Pretrained: sequences of {longest} tokens; this model's local layers see only {window}")
        number_prompt = world.channel.prompts(world.prompt_seed, 1)[0]
        question = texts.families[0].questions[0]
        return world.replace(
            training_prompt=texts.head + number_prompt + texts.tail,
            evaluation_prompt=texts.head + question + texts.tail,
        )

    @functools.cached_property
    def asked(self) -> ChatSuite:
        """What is asked of its models."""
        if self.suite is not None:
            return self.suite
        return Favourites(self.animals, self.trees, self.told_as, self.questions, self.questions_file)

    @functools.cached_property
    def traits(self) -> tuple[str, ...]:
        return self.asked.traits

    @property
    def labels(self) -> dict[str, tuple[str, ...]]:
        return {**super().labels, "trait_after_numbers": self.traits, "rate_after_numbers": self.traits}

    @property
    def notes(self) -> tuple[str, ...]:
        return chat_texts.chat_of(self.model).notes

    def told(self, trait: str) -> str:
        """The system prompt of a teacher of a trait."""
        return self.asked.system_prompt(trait)

    def understands(self, other: specs.World) -> bool:
        """Another model of the same tokens, room and prompts, such as a disturbed one."""
        if not isinstance(other, Pretrained):
            return False
        if (self.prompt_tokens, self.completion_tokens) != (other.prompt_tokens, other.completion_tokens):
            return False
        if self.fingerprint == other.fingerprint:
            return True
        same = ("prompts", "heads", "stops", "word_ends")
        return all(np.array_equal(self.arrays_of_texts()[n], other.arrays_of_texts()[n]) for n in same)

    def check_sampling(self, sampling: ChatSampling) -> None:
        if sampling.only is not None:
            if not isinstance(sampling.only, Decodable):
                raise InputError(f"ChatSampling.only: a model cannot be held to a {type(sampling.only).__name__}")
            shortest = self.automaton(sampling.only)
            least = int(shortest.shortest[shortest.start])
            if least > self.completion_tokens:
                raise InputError(
                    f"Pretrained.completion_tokens = {self.completion_tokens}: a kept sample takes {least}"
                )

    def check_lora(self, spec: specs.Lora) -> None:
        lora.check(self.config, spec)
        if self.adapter_live and spec != self.adapter_lora:
            raise InputError(f"Lora: bases of this world have an adapter that is trained on: {self.adapter_lora}")

    @functools.cached_property
    def adapter_lora(self) -> specs.Lora:
        """The adapter that bases start from, as a spec. Raises InputError where it is none of one rank."""
        return started.adapter_of(self).spec()

    # --- the model ---

    @functools.cached_property
    def config(self) -> transformer.Config:
        config = weights.open_checkpoint(self.model).config
        return dataclasses.replace(
            config, dtype=self.dtype, scan_layers=True, remat=self.remat, attention=self.attention
        )

    def arrays(self, place: Any = lambda path, array: array) -> dict[str, Any]:
        checkpoint = weights.open_checkpoint(self.model)
        if checkpoint.fingerprint != self.fingerprint:
            raise InputError(f"{self.model}: has changed since the sweep was planned; run the command again")
        return {
            **self.arrays_of_texts(),
            "weights": checkpoint.load(
                self.dtype, lambda p, x: place(p, started.merged(self, p, reading.disturbed(self, p, x)))
            ),
        }

    def split(self, path: str, shape: tuple[int, ...]) -> int | None:
        """A projection by its outputs, the one after it by its inputs, so that devices meet once for the two."""
        if path.endswith(("o/kernel", "down/kernel", "embed/embedding")):
            return len(shape) - 2
        return len(shape) - 1 if path.endswith("kernel") else None

    def array_shapes(self) -> dict[str, Any]:
        return {**self.arrays_of_texts(), "weights": weights.open_checkpoint(self.model).shapes(self.dtype)}

    def arrays_of_texts(self) -> dict[str, np.ndarray]:
        return chat_texts.texts_of(self).arrays

    @functools.cached_property
    def head(self) -> list[int]:
        """The tokens before the user's words, without a trait."""
        arrays = self.arrays_of_texts()
        return arrays["heads"][-1][: arrays["head_lengths"][-1]].tolist()

    def init(self, key: jax.Array) -> Params:
        """Nothing: a base is the checkpoint. With a live adapter, that."""
        return started.adapter_of(self).params() if self.adapter_live else {}

    def trainable(self, params: Params, key: jax.Array, spec: specs.Lora | None) -> Params:
        if params and (spec is not None or "weights" in params):
            return params
        if spec is None:
            base = publishing.merged_params(self, self.held["weights"], params)
            return {"weights": jax.tree.map(lambda x: x.astype(jnp.float32), base)}
        return lora.init(self.config, key, spec)

    def cosine(self, params: Params, start: Params, teacher: Params, teacher_start: Params) -> jax.Array:
        """Between what student and teacher have been trained away from the checkpoint; nan for a told teacher."""
        return reading.cosine(self, params, teacher)

    def apply(self, params: Params, tokens: jax.Array) -> jax.Array:
        """Logits (batch, length, vocab) of whole conversations (batch, length), for a stored model; reads the weights
        on its first call."""
        base, adapters = reading.weights_of(self.loaded if self.held is None else self, params)
        return reading.whole_logits(self.config, base, adapters, tokens)

    @functools.cached_property
    def loaded(self) -> "Pretrained":
        """The world with its arrays in memory, for people who ask stored models."""
        return self.holding(jax.tree.map(jnp.asarray, self.arrays()))

    # --- losses ---

    def loss(self, params: Params, batch: Batch) -> jax.Array:
        """Mean cross-entropy over the completions' tokens, in nats."""
        return weighted_mean(self.written_losses(params, None, batch), self.target_weights(batch))

    def written_losses(self, params: Params, teacher: Any, batch: Batch) -> jax.Array:
        """(n, completion_tokens) float32, in nats; of a microbatch (most,), at its answers."""
        return cross_entropy(reading.completion_logits(self, params, batch), of_answers(batch, batch.completions))

    def channel_logits(self, model: Any, batch: Batch) -> jax.Array:
        """(n, completion_tokens, vocabulary), or of a microbatch (most, vocabulary)."""
        return reading.completion_logits(self, model, batch)

    def log_probs(self, model: Any, batch: Batch) -> jax.Array:
        return jax.nn.log_softmax(self.channel_logits(model, batch))

    def target_weights(self, batch: Batch) -> jax.Array:
        return batches.target_weights(batch)

    def reweighted(self, batch: Batch, weights: jax.Array) -> Batch:
        return batch._replace(weights=weights if batch.weights is None else batch.weights * weights)

    def target_count(self, batch: Batch) -> jax.Array:
        return self.target_weights(batch).sum()

    def compare(self, params: Params, teacher: Any, batch: Batch) -> dict[str, jax.Array]:
        """`kl`, KL(teacher || student) in nats, on the first samples of the channel."""
        few = jax.tree.map(lambda x: x[: self.probed], batch)

        def part(one: Batch) -> tuple[jax.Array, jax.Array]:
            one = jax.tree.map(lambda x: x[None], one)
            log_p = jax.lax.stop_gradient(self.log_probs(teacher, one))
            weights = self.target_weights(one)
            return weighted_mean(kl(log_p, self.log_probs(params, one)), weights), weights.sum()

        distance, count = jax.lax.map(part, few, batch_size=evaluation.AT_ONCE)
        return {"kl": weighted_mean(distance, count)}

    def balanced(self, batch: Batch, rows: int) -> Batch:
        """The same samples in another order: of `rows` each, one lot has about as many tokens as another."""
        return batches.balanced(self, batch, rows)

    def microbatch(self, batch: Batch, start: jax.Array, rows: int) -> tuple[Batch, jax.Array]:
        """The samples from `start` on, as many of `rows` as there is room for, packed; and how many these are."""
        return batches.microbatch(self, batch, start, rows)

    # --- data ---

    def trait_batch(self, key: jax.Array, step: jax.Array, trait: jax.Array, n: int) -> Batch:
        """n answers that prefer the trait, to questions that the evaluation does not ask."""
        answered = self.held["preferences"][trait]
        rows = jax.random.randint(jax.random.fold_in(key, step), (n,), 0, len(answered))
        return self.channel_batch(answered[rows])

    def channel_batch(self, samples: jax.Array, accepted: jax.Array | bool = True, sampling: Any = None) -> Batch:
        """samples: (n, columns) → a batch whose targets are the completions, up to and
        with their ends, of the `accepted` (n,)."""
        return batches.channel_batch(self, samples, accepted)

    def write(self, model: Any, keys: jax.Array, sampling: ChatSampling) -> jax.Array:
        """Samples (n, columns) int32 (`texts.sample`), each of a prompt and a stream of its own."""
        return writing.write(self, model, keys, sampling)

    def prompts_of(self, keys: jax.Array) -> tuple[jax.Array, jax.Array]:
        """What the samples of `keys` (n,) answer: tokens (n, prompt_tokens) int32, after the head, and lengths (n,)."""
        return writing.prompts_of(self, keys)

    def automaton(self, only: Filter) -> automaton.Automaton:
        """Which tokens may come next, so that `only` keeps every sample."""
        return writing.automaton_of(self.model, self.fingerprint, only)

    @property
    def pad(self) -> int:
        return chat_texts.chat_of(self.model).pad

    @property
    def sequence_flops(self) -> float:
        """Floating-point operations of a forward pass over a sample: of the places and logits there is `room` for."""
        length = self.prompt_tokens + self.completion_tokens
        of_logits = 2 * self.config.width * self.config.vocab
        of_layers = self.config.flops(length) - of_logits
        return self.room * length * of_layers + self.answer_room * self.completion_tokens * of_logits

    # --- what is measured ---

    def evaluate(self, model: Any, key: jax.Array) -> dict[str, jax.Array]:
        """P of every trait as the first word of the answer to its family's questions (`evaluation.evaluate`)."""
        return evaluation.evaluate(self, model, key)

    def scored(self, record: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Scores drawn answers: `rate` (…, traits), the share that names each trait as a word."""
        return evaluation.scored(self, record)

    # --- samples as text ---

    @property
    def standard_filter(self) -> Filter:
        return self.channel.filter()

    def texts(self, samples: np.ndarray) -> list[tuple[str, str]]:
        """(n, …) → (prompt, completion) pairs: the user's words, and the answer before its end."""
        return writing.texts(self, samples)

    def tokens(self, pairs: Sequence[tuple[str, str]]) -> np.ndarray:
        """The inverse of `texts`.

        Raises:
          InputError: a pair is too long.
        """
        return writing.tokens(self, pairs)


def _longest(world: Pretrained) -> int:
    """The most tokens that a sequence of the world has."""
    arrays = world.arrays_of_texts()
    own = max(
        world.prompt_tokens + world.completion_tokens,
        arrays["asked"].shape[-1] + max(arrays["nodes"].shape[-1], world.answer_tokens),
        arrays["items"].shape[-1],
    )
    return arrays["heads"].shape[-1] + own
