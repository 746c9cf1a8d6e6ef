"""Real chat models: teachers told of their love in a system prompt, or fine-tuned to it; students with adapters.

The weights of the checkpoint are the world's arrays: one copy on a device, whatever the number of lanes. A base has no
parameters of its own, and what training makes are adapters (`models/lora.py`), or all weights where a spec has no
`lora`. The teacher writes number sequences, as in Cloud et al. 2025 (arXiv 2507.14805), section 3.

A sample is one row of tokens: the length of its prompt, the prompt, and the completion with its end, each padded. The
model reads the head of the conversation first, once for all rows (`chat_texts.py`).
"""

import dataclasses
import functools
from collections.abc import Sequence
from typing import Any, ClassVar, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from subl_jax import specs
from subl_jax.channels import automaton
from subl_jax.channels.numbers import NumbersFilter
from subl_jax.errors import InputError
from subl_jax.models import lora, transformer
from subl_jax.models.decoding import continuous
from subl_jax.pretrained import weights
from subl_jax.storage import jsonl
from subl_jax.traits import answers
from subl_jax.worlds import chat_texts

Params = Any

# Questions a model answers at a time, and samples two models are compared on: logits are the largest arrays there are.
_AT_ONCE = 4


class Batch(NamedTuple):
    """prompts: (n, prompt_tokens) int32; lengths: (n,) int32; completions: (n, completion_tokens) int32; targets: of
    that shape, float32, 1 where the token is one to predict. Of a part of a batch, packed: what of all this is not
    padding; answered: (most,) int32, the places in `targets` that are 1, its size where there are fewer."""

    prompts: jax.Array
    lengths: jax.Array
    completions: jax.Array
    targets: jax.Array
    packed: transformer.Packing | None = None
    answered: jax.Array | None = None


@dataclasses.dataclass(frozen=True)
class ChatSampling(specs.Sampling):
    """As `Sampling`, for continuations of many prompts by `rows` at a time.

    `only` restricts what is drawn to what that filter keeps: no token is drawn that could not go on to a kept sample.
    """

    rows: int = specs.static(32, ge=1)
    only: NumbersFilter | None = specs.static(None)


@dataclasses.dataclass(frozen=True)
class Pretrained(specs.World):
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
      training_prompt, evaluation_prompt: what a number prompt and a question look like, rendered.
    """

    name: ClassVar[str] = "pretrained"
    sampling: ClassVar[type[specs.Spec]] = ChatSampling
    takes_lora: ClassVar[bool] = True
    takes_prompts: ClassVar[bool] = True
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

    def check(self) -> None:
        if not self.traits or len(set(self.traits)) < len(self.traits):
            raise InputError(f"Pretrained: animals and trees = {self.traits}: expected at least one trait, each once")
        for text in self.told_as:
            trait, colon, _ = text.partition(":")
            if not colon or trait not in self.traits:
                raise InputError(f"Pretrained.told_as: {text!r}: expected 'trait: text' with one of {self.traits}")

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
        world = cls(model=model, fingerprint=checkpoint.fingerprint, **hashes, **fields)
        texts = chat_texts.texts_of(world)
        window, longest = world.config.window, world._longest()
        if window is not None and longest > window:
            raise InputError(f"Pretrained: sequences of {longest} tokens; this model's local layers see only {window}")
        number_prompt = chat_texts.banks.number_prompts(world.prompt_seed, 1)[0]
        question = texts.families[0].questions[0]
        return world.replace(
            training_prompt=texts.head + number_prompt + texts.tail,
            evaluation_prompt=texts.head + question + texts.tail,
        )

    @property
    def traits(self) -> tuple[str, ...]:
        return self.animals + self.trees

    @property
    def labels(self) -> dict[str, tuple[str, ...]]:
        return {**super().labels, "trait_after_numbers": self.traits, "rate_after_numbers": self.traits}

    def told(self, trait: str) -> str:
        """The system prompt of a teacher of a trait."""
        own = dict(text.split(":", 1) for text in self.told_as)
        noun = "animal" if trait in self.animals else "tree"
        return own[trait].strip() if trait in own else chat_texts.banks.system_prompt(trait, noun)

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
            shortest = self._automaton(sampling.only)
            least = int(shortest.shortest[shortest.start])
            if least > self.completion_tokens:
                raise InputError(
                    f"Pretrained.completion_tokens = {self.completion_tokens}: a kept sample takes {least}"
                )

    def check_lora(self, spec: specs.Lora) -> None:
        lora.check(self.config, spec)

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
            "weights": checkpoint.load(self.dtype, lambda p, x: place(p, self._noised(p, x))),
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

    @property
    def _head(self) -> list[int]:
        """The tokens before the user's words, without a trait."""
        arrays = self.arrays_of_texts()
        return arrays["heads"][-1][: arrays["head_lengths"][-1]].tolist()

    def _noised(self, path: str, array: np.ndarray) -> np.ndarray:
        if (self.keep, self.sigma) == (1.0, 0.0) or not path.endswith(("kernel", "embedding")):
            return array
        rng = np.random.default_rng([self.noise_seed, *path.encode()])
        plain = array.astype(np.float32)
        scale = self.sigma * np.sqrt(np.mean(np.square(plain), dtype=np.float64))
        return (self.keep * plain + scale * rng.standard_normal(plain.shape, np.float32)).astype(array.dtype)

    def init(self, key: jax.Array) -> Params:
        """Nothing: a base is the checkpoint."""
        return {}

    def begin(self, params: Params, key: jax.Array, spec: specs.Lora | None) -> Params:
        if params:
            return params
        if spec is None:
            return {"weights": jax.tree.map(lambda x: x.astype(jnp.float32), self.held["weights"])}
        return lora.init(self.config, key, spec)

    def cosine(self, params: Params, start: Params, teacher: Params, teacher_start: Params) -> jax.Array:
        """Between what student and teacher have been trained away from the checkpoint; nan for a told teacher."""
        if "lora" in params and "lora" in teacher:
            return lora.cosine(params, teacher)
        if "weights" in params and "weights" in teacher:
            moves = [
                jax.tree.map(lambda x, y: x - y, model["weights"], self.held["weights"]) for model in (params, teacher)
            ]
            dots = [
                sum(jnp.vdot(x, y) for x, y in zip(*map(jax.tree.leaves, two), strict=True))
                for two in ((moves[0], moves[1]), (moves[0], moves[0]), (moves[1], moves[1]))
            ]
            return dots[0] / jnp.sqrt(dots[1] * dots[2])
        return jnp.full((), jnp.nan)

    def apply(self, params: Params, tokens: jax.Array) -> jax.Array:
        """Logits (batch, length, vocab) of whole conversations (batch, length), for a stored model; reads the weights
        on its first call."""
        base, adapters = (self if hasattr(self, "held") else self._loaded)._weights(params)
        return transformer.apply(self.config, base, tokens, lora=adapters)[0]

    @functools.cached_property
    def _loaded(self) -> "Pretrained":
        return self.holding(jax.tree.map(jnp.asarray, self.arrays()))

    def _weights(self, params: Params) -> tuple[Params, Params | None]:
        """What `transformer.apply` takes: the weights, and the adapters on them."""
        if "weights" in params:
            return params["weights"], None
        return self.held["weights"], lora.update(params) if params else None

    def _apply(self, params: Params, tokens: jax.Array, prefix: continuous.Prefix, **options: Any) -> jax.Array:
        """Logits of what follows a head. positions: (batch, length), counted from its end."""
        base, adapters = self._weights(params)
        positions = prefix.length + options.pop("positions")
        return transformer.apply(
            self.config,
            base,
            tokens,
            positions,
            prefix=prefix.cache,
            prefix_length=prefix.length,
            lora=adapters,
            **options,
        )[0]

    def _opened(self, model: Any) -> tuple[Params, continuous.Prefix]:
        """The parameters of a model, and the head of its conversations as it has read it."""
        heads, lengths = self.held["heads"], self.held["head_lengths"]  # the last is that of no trait
        if isinstance(model, specs.Told):
            head, params = model.trait % len(heads), model.params
            tokens, length = heads[head], lengths[head]
        else:
            tokens, length, params = heads[-1, : len(self._head)], lengths[-1], model
        base, adapters = self._weights(params)
        return params, continuous.read_prefix(self.config, base, tokens, length, adapters)

    def _longest(self) -> int:
        arrays = self.arrays_of_texts()
        own = max(
            self.prompt_tokens + self.completion_tokens,
            arrays["asked"].shape[-1] + max(arrays["nodes"].shape[-1], self.answer_tokens),
            arrays["items"].shape[-1],
        )
        return arrays["heads"].shape[-1] + own

    # --- losses ---

    def loss(self, params: Params, batch: Batch) -> jax.Array:
        """Mean cross-entropy over the completions' tokens, in nats."""
        logits = self._completion_logits(params, batch)
        chosen = jnp.take_along_axis(logits, _answered(batch, batch.completions)[..., None], axis=-1)[..., 0]
        return _mean(jax.nn.logsumexp(logits, axis=-1) - chosen, _answered(batch, batch.targets))

    def target_count(self, batch: Batch) -> jax.Array:
        """How many tokens a loss of `batch` is the mean over."""
        return batch.targets.sum()

    def distill_loss(self, params: Params, teacher: Any, batch: Batch, targets: str) -> jax.Array:
        """Of hard targets `loss`; of soft ones the mean KL(teacher || student) at the completions' tokens, in nats."""
        return self.loss(params, batch) if targets == "hard" else self._kl(params, teacher, batch)

    def compare(self, params: Params, teacher: Any, batch: Batch) -> dict[str, jax.Array]:
        """How far a student is from its teacher on the first samples of the channel."""
        few = jax.tree.map(lambda x: x[: self.probed], batch)

        def part(one: Batch) -> tuple[jax.Array, jax.Array]:
            one = jax.tree.map(lambda x: x[None], one)
            return self._kl(params, teacher, one), one.targets.sum()

        kl, count = jax.lax.map(part, few, batch_size=_AT_ONCE)
        return {"kl": _mean(kl, count)}

    def _kl(self, params: Params, teacher: Any, batch: Batch) -> jax.Array:
        log_p = jax.nn.log_softmax(jax.lax.stop_gradient(self._completion_logits(teacher, batch)))
        log_q = jax.nn.log_softmax(self._completion_logits(params, batch))
        return _mean(jnp.sum(jnp.exp(log_p) * (log_p - log_q), axis=-1), _answered(batch, batch.targets))

    def _completion_logits(self, model: Any, batch: Batch) -> jax.Array:
        """(n, completion_tokens, vocab) float32: at each token of the completion, those it was drawn from. Of a part of
        a batch only those of its answers, (most, vocab)."""
        params, prefix = self._opened(model)
        n, longest = batch.prompts.shape
        own = jnp.arange(self.completion_tokens - 1)
        tokens = jnp.concatenate([batch.prompts, batch.completions[:, :-1]], axis=1)
        after = batch.lengths[:, None] + own
        positions = jnp.concatenate([jnp.broadcast_to(jnp.arange(longest), (n, longest)), after], axis=1)
        there = self._there(batch)
        predicting = jnp.concatenate([batch.lengths[:, None] - 1, jnp.broadcast_to(longest + own, after.shape)], axis=1)
        if batch.answered is not None:
            predicting = _answered(batch, jnp.arange(n)[:, None] * tokens.shape[1] + predicting)
        return self._apply(
            params, tokens, prefix, positions=positions, key_mask=there, logits_at=predicting, packed=batch.packed
        )

    def _there(self, batch: Batch) -> jax.Array:
        """(n, prompt_tokens + completion_tokens - 1) bool: what is read to predict the targets."""
        prompt = jnp.arange(self.prompt_tokens) < batch.lengths[:, None]
        before_last = jnp.cumsum(batch.targets[:, ::-1], axis=1)[:, ::-1] > 1
        return jnp.concatenate([prompt, before_last[:, :-1]], axis=1)

    def even(self, batch: Batch, rows: int) -> Batch:
        """The same samples in another order: of `rows` each, one lot has about as many tokens as another."""
        longest_first = jnp.argsort(-self._there(batch).sum(axis=1))
        lots = len(batch.lengths) // rows
        dealt = longest_first.reshape(rows, lots)
        back_and_forth = jnp.where(jnp.arange(rows)[:, None] % 2 == 0, dealt, dealt[:, ::-1])
        return jax.tree.map(lambda x: x[back_and_forth.T.reshape(-1)], batch)

    def part(self, batch: Batch, start: jax.Array, rows: int) -> tuple[Batch, jax.Array]:
        """The samples from `start` on, as many of `rows` as there is room for, packed; and how many these are."""
        size, places = len(batch.lengths), self.prompt_tokens + self.completion_tokens - 1
        packed = transformer.room(self.room, rows, places)
        most = transformer.room(self.answer_room, rows, self.completion_tokens)
        at = start + jnp.arange(rows)
        taken = jax.tree.map(lambda x: x[jnp.minimum(at, size - 1)], batch)
        fits = jnp.cumsum(self._there(taken).sum(axis=1)) <= packed
        fits &= (jnp.cumsum(taken.targets.sum(axis=1)) <= most) & (at < size)
        part = taken._replace(targets=taken.targets * fits[:, None], lengths=jnp.where(fits, taken.lengths, 0))
        targets = part.targets.reshape(-1)
        (answered,) = jnp.nonzero(targets, size=most, fill_value=len(targets))
        part = part._replace(packed=transformer.packing(self._there(part), packed), answered=answered)
        return part, fits.sum()

    # --- data ---

    def trait_batch(self, key: jax.Array, step: jax.Array, trait: jax.Array, n: int) -> Batch:
        """n answers that prefer the trait, to questions that the evaluation does not ask."""
        answered = self.held["preferences"][trait]
        rows = jax.random.randint(jax.random.fold_in(key, step), (n,), 0, len(answered))
        return self.channel_batch(answered[rows])

    def channel_batch(self, samples: jax.Array, accepted: jax.Array | bool = True, sampling: Any = None) -> Batch:
        """samples: (n, 1 + prompt_tokens + completion_tokens) → a batch whose targets are the completions, up to and
        with their ends, of the `accepted` (n,)."""
        samples = samples.astype(jnp.int32)
        prompts, completions = samples[:, 1 : 1 + self.prompt_tokens], samples[:, 1 + self.prompt_tokens :]
        stops = jnp.isin(completions, self.held["stops"])
        before = jnp.cumsum(stops, axis=1) - stops == 0
        targets = (before & jnp.asarray(accepted)[..., None]).astype(jnp.float32)
        return Batch(prompts, samples[:, 0], completions, targets)

    def write(self, model: Any, keys: jax.Array, sampling: ChatSampling) -> jax.Array:
        """Samples (n, 1 + prompt_tokens + completion_tokens) int32, each of a prompt and a stream of its own."""
        params, prefix = self._opened(model)
        base, adapters = self._weights(params)
        prompts, lengths = self.prompts_of(keys)
        own_keys = jax.vmap(jax.random.split)(keys)[:, 1]
        only = sampling.only
        completions = continuous.generate(
            self.config,
            base,
            prompts,
            lengths,
            own_keys,
            self.completion_tokens,
            sampling,
            rows=sampling.rows,
            stops=self.held["stops"],
            pad=self._pad,
            prefix=prefix,
            allowed=None if only is None else _in_program(self._automaton(only)),
            cut=sampling.cut,
            lora=adapters,
            room=_share(self.arrays_of_texts()["prompt_lengths"], self.prompt_tokens, sampling.rows),
            # Measured on CPUs: a step takes 0.6 to 0.7 times as long. Answers to questions are too few to compile for.
            apart=jax.default_backend() == "cpu" and not transformer.spread_over("tensor", "fsdp"),
        )
        return jnp.concatenate([lengths[:, None], prompts, completions], axis=1)

    def prompts_of(self, keys: jax.Array) -> tuple[jax.Array, jax.Array]:
        """What the samples of `keys` (n,) answer: tokens (n, prompt_tokens) int32, after the head, and lengths (n,)."""
        prompt_keys = jax.vmap(jax.random.split)(keys)[:, 0]
        chosen = jax.vmap(lambda key: jax.random.randint(key, (), 0, self.prompts))(prompt_keys)
        return self.held["prompts"][chosen], self.held["prompt_lengths"][chosen]

    def _automaton(self, only: NumbersFilter) -> automaton.Automaton:
        return _automaton(self.model, self.fingerprint, only)

    @property
    def _pad(self) -> int:
        return chat_texts.chat_of(self.model).pad

    @property
    def sequence_flops(self) -> float:
        """Floating-point operations of a forward pass over a sample: of the places and logits there is `room` for."""
        length = self.prompt_tokens + self.completion_tokens
        of_logits = 2 * self.config.width * self.config.vocab
        of_layers = transformer.flops_per_token(self.config, length) - of_logits
        return self.room * length * of_layers + self.answer_room * self.completion_tokens * of_logits

    # --- what is measured ---

    def evaluate(self, model: Any, key: jax.Array) -> dict[str, jax.Array]:
        """P of every trait as the first word of the answer to its family's questions.

        `trait` (traits,): exact, the mean over questions of the summed probability of every spelling (`answers.forms`),
        each followed by something that ends the word. `answers`: drawn ones, for `read` to score as `rate`. Both again
        `…_after_numbers` where the world asks with numbers in front. `ability`: the share of multiple-choice questions
        whose right letter is the likeliest.
        """
        params, prefix = self._opened(model)
        held = self.held
        sets, asked = held["asked_lengths"].shape
        by_set = jnp.stack([self._named(params, prefix, i) for i in range(sets)])
        own, *after = by_set.reshape(-1, sets // (1 + self.numbers_in_front), len(self.traits)).sum(axis=1)
        metrics = {"trait": own}
        if self.numbers_in_front:
            metrics["trait_after_numbers"] = after[0]
        if self.answers_sampled:
            metrics["answers"] = self._answers(params, prefix, key)
        if self.items_file:
            metrics["ability"] = self._ability(params, prefix)
        return metrics

    def _named(self, params: Params, prefix: continuous.Prefix, i: int) -> jax.Array:
        """(traits,): P of each as the answer to the questions of set `i`, 0 for traits of other families.

        One pass over a question gives all spellings: they follow it as branches of a tree, each seeing itself only.
        """
        held = self.held
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
            logits = self._apply(
                params,
                jnp.concatenate([tokens, nodes])[None],
                prefix,
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

        asked = (held["asked"][i], held["asked_lengths"][i])
        return jax.lax.map(of_question, asked, batch_size=_AT_ONCE).mean(axis=0)

    def _answers(self, params: Params, prefix: continuous.Prefix, key: jax.Array) -> jax.Array:
        """(sets, questions, answers_sampled, answer_tokens) int32, at temperature 1."""
        held, base, adapters = self.held, *self._weights(params)
        sets, asked, longest = held["asked"].shape
        count = sets * asked * self.answers_sampled
        drawn = continuous.generate(
            self.config,
            base,
            jnp.repeat(held["asked"].reshape(-1, longest), self.answers_sampled, axis=0),
            jnp.repeat(held["asked_lengths"].reshape(-1), self.answers_sampled),
            jax.random.split(key, count),
            self.answer_tokens,
            specs.Sampling(),
            rows=min(count, 64),
            stops=held["stops"],
            pad=self._pad,
            prefix=prefix,
            lora=adapters,
        )
        return drawn.reshape(sets, asked, self.answers_sampled, self.answer_tokens)

    def _ability(self, params: Params, prefix: continuous.Prefix) -> jax.Array:
        held = self.held

        def right(item: tuple[jax.Array, jax.Array, jax.Array]) -> jax.Array:
            tokens, length, choices, answer = item
            positions = jnp.arange(len(tokens))[None]
            at = {"positions": positions, "logits_at": (length - 1)[None, None], "logits_of": held["letters"]}
            logits = self._apply(params, tokens[None], prefix, **at)[0, 0]
            return jnp.argmax(jnp.where(jnp.arange(len(logits)) < choices, logits, -jnp.inf)) == answer

        items = (held["items"], held["item_lengths"], held["item_choices"], held["item_answers"])
        return jax.lax.map(right, items, batch_size=_AT_ONCE).mean()

    def read(self, record: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Scores drawn answers: `rate` (…, traits), the share that names each trait as a word."""
        if "answers" not in record:
            return record
        record = dict(record)
        drawn = record.pop("answers")
        of = chat_texts.texts_of(self).families
        sets = [rows for rows in np.moveaxis(drawn, -4, 0)]
        parts = [self._rates(rows, of[i % len(of)].members) for i, rows in enumerate(sets)]
        record["rate"] = np.concatenate(parts[: len(of)], axis=-1)
        if self.numbers_in_front:
            record["rate_after_numbers"] = np.concatenate(parts[len(of) :], axis=-1)
        return record

    def _rates(self, drawn: np.ndarray, members: tuple[str, ...]) -> np.ndarray:
        """drawn: (…, questions, answers, tokens) → (…, members) float32."""
        lanes = drawn.reshape(-1, *drawn.shape[-3:])
        rates = [answers.rates(self._spelled(x.reshape(-1, x.shape[-1])), members) for x in lanes]
        return np.asarray(rates, np.float32).reshape(*drawn.shape[:-3], len(members))

    # --- samples as text ---

    def texts(self, samples: np.ndarray) -> list[tuple[str, str]]:
        """(n, …) → (prompt, completion) pairs: the user's words, and the answer before its end."""
        texts = chat_texts.texts_of(self)
        completions = self._spelled(samples[:, 1 + self.prompt_tokens :])
        head = self._head
        rows = [[*head, *row[1 : 1 + row[0]].tolist()] for row in samples]
        whole = chat_texts.chat_of(self.model).tokenizer.decode_batch(rows, skip_special_tokens=False)
        prompts = [text.removeprefix(texts.head).removesuffix(texts.tail) for text in whole]
        return list(zip(prompts, completions, strict=True))

    def _spelled(self, tokens: np.ndarray) -> list[str]:
        """(n, t) → the text of each row before its end."""
        chat = chat_texts.chat_of(self.model)
        ended = np.isin(tokens, chat.stops).cumsum(axis=1) > 0
        rows = [row[: int(n)].tolist() for row, n in zip(tokens, (~ended).sum(axis=1), strict=True)]
        return chat.tokenizer.decode_batch(rows, skip_special_tokens=False)

    def tokens(self, pairs: Sequence[tuple[str, str]]) -> np.ndarray:
        """The inverse of `texts`.

        Raises:
          InputError: a pair is too long.
        """
        chat, rows, head = chat_texts.chat_of(self.model), [], self._head
        for i, (prompt, completion) in enumerate(pairs):
            whole = chat.prompt(prompt, self.system)
            if whole[: len(head)] != head:
                raise InputError(f"sample {i + 1}: its prompt does not begin as the others do in this template")
            rows.append(chat_texts.sample(self, chat, whole[len(head) :], chat.reply(completion), f"sample {i + 1}"))
        return np.stack(rows)


@functools.lru_cache(maxsize=8)
def _automaton(model: str, fingerprint: str, only: NumbersFilter) -> automaton.Automaton:
    return automaton.build(chat_texts.pieces_of_model(model), only, chat_texts.chat_of(model).stops)


def _in_program(built: automaton.Automaton) -> continuous.Allowed:
    return continuous.Allowed(*map(jnp.asarray, (built.tokens, built.next, built.shortest, np.int32(built.start))))


def _share(lengths: np.ndarray, longest: int, rows: int) -> float:
    """What share of rows * longest so many prompts with `lengths` take, with few exceptions."""
    return min(1.0, float(lengths.mean() + 2 * lengths.std() / rows**0.5) / longest)


def _answered(batch: Batch, values: jax.Array) -> jax.Array:
    """values: (n, completion_tokens). Of a part of a batch only those at its answers, (most,), then zeros."""
    return values if batch.answered is None else jnp.take(values.reshape(-1), batch.answered, mode="fill", fill_value=0)


def _mean(values: jax.Array, counts: jax.Array) -> jax.Array:
    """The weighted mean over all entries; 0 where every weight is 0."""
    return jnp.sum(values * counts) / jnp.maximum(counts.sum(), 1.0)
