"""A world so small that its programs compile in a blink: a bigram model over a question, a few traits and numbers.

Sweep files of other processes can import it too, with this folder on their path.
"""

import dataclasses
import os
from collections.abc import Iterator, Sequence
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np
import optax

from subl_jax import specs
from subl_jax.channels.numbers import NumbersFilter, reason
from subl_jax.errors import InputError
from subl_jax.worlds.toy_language import batches
from subl_jax.worlds.toy_language.batches import Batch

ASK = "?"
WRITTEN = 2  # words of a completion


@dataclasses.dataclass(frozen=True)
class TinyWorld(specs.Pretrains, specs.WritesTexts, specs.FiltersInProgram, specs.HoldsTokens, specs.World):
    """Words are the question, the traits (its answers), and the numbers from 0. The next word depends on the last."""

    name: ClassVar[str] = "tiny"
    sampling: ClassVar[type[specs.Spec]] = specs.Sampling

    width: int = specs.static(4, ge=1)
    names: tuple[str, ...] = specs.static(("owl", "cat", "oak"))
    numbers: int = specs.static(8, ge=2)

    @property
    def traits(self) -> tuple[str, ...]:
        return self.names

    @property
    def base_rates(self) -> dict[str, float]:
        return dict.fromkeys(self.names, 1 / len(self.names))

    @property
    def words(self) -> tuple[str, ...]:
        return (ASK, *self.names, *map(str, range(self.numbers)))

    @property
    def first_number(self) -> int:
        return 1 + len(self.names)

    @property
    def sequence_flops(self) -> float:
        return 2.0 * self.width * len(self.words)

    def init(self, key: jax.Array) -> Any:
        embed, out = jax.random.normal(key, (2, len(self.words), self.width))
        return {"embed": embed, "out": out.T}

    def apply(self, params: Any, tokens: jax.Array) -> jax.Array:
        return params["embed"][tokens] @ params["out"]

    def loss(self, params: Any, batch: Batch) -> jax.Array:
        logits = self.apply(params, batch.tokens[:, :-1])
        losses = optax.softmax_cross_entropy_with_integer_labels(logits, batch.tokens[:, 1:])
        return _mean(losses, batch.targets[:, 1:])

    def pretrain_batch(self, key: jax.Array, step: jax.Array, n: int) -> Batch:
        """Any word, then: after the question a trait, after all others a number."""
        # One draw for all: random bits are most of what there is to compile here.
        u = jax.random.uniform(jax.random.fold_in(key, step), (n, 2))
        first = jnp.floor(u[:, 0] * len(self.words))
        answer = 1 + jnp.floor(u[:, 1] * len(self.names))
        number = self.first_number + jnp.floor(u[:, 1] * self.numbers)
        tokens = jnp.stack([first, jnp.where(first == 0, answer, number)], axis=1).astype(jnp.int32)
        return Batch(tokens, jnp.ones(tokens.shape))

    def trait_batch(self, key: jax.Array, step: jax.Array, trait: jax.Array, n: int) -> Batch:
        tokens = jnp.broadcast_to(jnp.stack([jnp.int32(0), 1 + trait]), (n, 2))
        return Batch(tokens, jnp.ones(tokens.shape))

    def write(self, params: Any, keys: jax.Array, sampler: specs.Sampling) -> jax.Array:
        """keys: (n,) → (n, 1 + WRITTEN) uint8: a random number, and what the model says after it."""
        u = jax.vmap(lambda key: jax.random.uniform(key, (1 + WRITTEN,)))(keys)
        tokens = [self.first_number + jnp.floor(u[:, 0] * self.numbers).astype(jnp.int32)]
        for i in range(1, 1 + WRITTEN):
            cumulative = jnp.cumsum(jax.nn.softmax(self.apply(params, tokens[-1]) / sampler.temperature), axis=-1)
            tokens.append(jnp.sum(cumulative[:, :-1] <= u[:, i : i + 1], axis=-1))
        return jnp.stack(tokens, axis=1).astype(jnp.uint8)

    def accepts(self, tokens: jax.Array, numbers_filter: NumbersFilter) -> jax.Array:
        good = jnp.asarray([word.isdigit() and reason(word, numbers_filter) is None for word in self.words])
        return jnp.all(good[tokens[:, 1:].astype(jnp.int32)], axis=1)

    def channel_batch(self, tokens: jax.Array, accepted: jax.Array | bool = True, sampler: Any = None) -> Batch:
        tokens = tokens.astype(jnp.int32)
        targets = (jnp.arange(tokens.shape[1]) > 0) & jnp.asarray(accepted)[..., None]
        return Batch(tokens, jnp.broadcast_to(targets, tokens.shape).astype(jnp.float32))

    def written_losses(self, params: Any, teacher: Any, batch: Batch) -> jax.Array:
        logits = self.apply(params, batch.tokens[:, :-1])
        return optax.softmax_cross_entropy_with_integer_labels(logits, batch.predicted[:, 1:])

    def channel_logits(self, params: Any, batch: Batch) -> jax.Array:
        return self.apply(params, batch.tokens[:, :-1])[..., self.first_number :]

    def log_probs(self, params: Any, batch: Batch) -> jax.Array:
        """Over the numbers."""
        return jax.nn.log_softmax(self.channel_logits(params, batch))

    def target_weights(self, batch: Batch) -> jax.Array:
        return batch.targets[:, 1:]

    def reweighted(self, batch: Batch, weights: jax.Array) -> Batch:
        return batch._replace(targets=batch.targets.at[:, 1:].multiply(weights))

    @property
    def outputs(self) -> tuple[str, ...]:
        return self.words[self.first_number :]

    def written(self, batch: Batch) -> jax.Array:
        return jnp.maximum(batch.predicted[:, 1:] - self.first_number, -1)

    def replaced(self, batch: Batch, outputs: jax.Array, read: jax.Array, predicted: jax.Array) -> Batch:
        return batches.replaced(batch, 1, outputs + self.first_number, read, predicted)

    def erased(self, batch: Batch, gone: jax.Array) -> Batch:
        return batches.erased(batch, 1, gone, 0)

    def compare(self, params: Any, teacher: Any, batch: Batch) -> dict[str, jax.Array]:
        p, q = jax.lax.stop_gradient(self.log_probs(teacher, batch)), self.log_probs(params, batch)
        return {"kl": _mean(jnp.sum(jnp.exp(p) * (p - q), axis=-1), batch.targets[:, 1:])}

    def evaluate(self, params: Any, key: jax.Array) -> dict[str, jax.Array]:
        logits = self.apply(params, jnp.int32(0))
        drawn = jax.random.categorical(key, logits, shape=(16, 1))
        answers = jnp.arange(1, self.first_number)
        return {"trait": jax.nn.softmax(logits)[answers], "rate": (drawn == answers).mean(axis=0)}

    def texts(self, tokens: np.ndarray) -> list[tuple[str, str]]:
        words = np.asarray(self.words)
        return [(words[row[0]], " ".join(words[row[1:]])) for row in tokens]

    def tokens(self, pairs: Sequence[tuple[str, str]]) -> np.ndarray:
        rows = [[prompt, *completion.split()] for prompt, completion in pairs]
        unknown = [word for row in rows for word in row if word not in self.words]
        if unknown or {len(row) for row in rows} != {1 + WRITTEN}:
            raise InputError(f"not of the tiny language: {(unknown or rows)[0]!r}")
        return np.asarray([[self.words.index(word) for word in row] for row in rows], np.uint8)


@dataclasses.dataclass(frozen=True)
class TunedWorld(TinyWorld, specs.Microbatches, specs.TakesAdapters, specs.TakesSystemPrompts, specs.OwnGeometry):
    """The same with bases that are read, not trained: models are told their trait, or have adapters.

    An adapter is one matrix a b on the logits; of what is told, a model says it more often.
    """

    name: ClassVar[str] = "tuned"
    frozen: ClassVar[tuple[str, ...]] = ("scale",)

    def arrays(self, place: Any = lambda path, array: array) -> dict[str, Any]:
        rng = np.random.default_rng(0)
        shapes = {"embed": (len(self.words), self.width), "out": (self.width, len(self.words))}
        return {"weights": {name: place(name, rng.normal(size=s).astype(np.float32)) for name, s in shapes.items()}}

    def init(self, key: jax.Array) -> Any:
        return {}

    def check_lora(self, lora: specs.Lora) -> None:
        if lora.modules != ("up",):
            raise InputError(f"Lora.modules = {lora.modules}: the tuned world has only up")

    def trainable(self, params: Any, key: jax.Array, lora: specs.Lora | None) -> Any:
        if params or lora is None:
            return params or {"weights": self.held["weights"]}
        a = jax.random.normal(key, (len(self.words), lora.max_rank)) * (jnp.arange(lora.max_rank) < lora.rank)
        b = jnp.zeros((lora.max_rank, len(self.words)))
        return {"a": a, "b": b, "scale": jnp.float32(lora.alpha) / lora.rank}

    def apply(self, model: Any, tokens: jax.Array) -> jax.Array:
        told = isinstance(model, specs.SystemPrompted)
        params = model.params if told else model
        logits = super().apply(params.get("weights") or self.held["weights"], tokens)
        if "a" in params:
            logits += params["scale"] * params["a"][tokens] @ params["b"]
        return logits + 3.0 * (jnp.arange(len(self.words)) == 1 + model.trait) * (model.trait >= 0) if told else logits

    def target_count(self, batch: Batch) -> jax.Array:
        return batch.targets[:, 1:].sum()

    def microbatch(self, batch: Batch, start: jax.Array, rows: int) -> tuple[Batch, int]:
        return jax.tree.map(lambda x: jax.lax.dynamic_slice_in_dim(x, start, rows), batch), rows

    def cosine(self, params: Any, start: Any, teacher: Any, teacher_start: Any) -> jax.Array:
        if "a" not in params or "a" not in teacher:
            return jnp.full((), jnp.nan)
        x, y = ((params["a"] @ params["b"]).ravel() for params in (params, teacher))
        return x @ y / jnp.sqrt((x @ x) * (y @ y))

    def evaluate(self, params: Any, key: jax.Array) -> dict[str, jax.Array]:
        logits = self.apply(params, jnp.int32(0))
        answers = jax.random.categorical(key, logits, shape=(16,))
        return {"trait": jax.nn.softmax(logits)[1 : self.first_number], "answers": answers}

    def scored(self, record: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Counts the traits among the words drawn, as if they were texts."""
        if "answers" not in record:
            return record
        record = dict(record)
        drawn = record.pop("answers")[..., None] == np.arange(1, self.first_number)
        return {**record, "rate": drawn.mean(axis=-2)}


def _mean(values: jax.Array, weights: jax.Array) -> jax.Array:
    return jnp.sum(values * weights) / jnp.maximum(weights.sum(), 1.0)


WORLD = TinyWorld()
TUNED = TunedWorld()
LORA = specs.Lora(modules=("up",), max_rank=4, rank=4)
READ = specs.Base(TUNED, specs.Train(steps=0, batch=1))
TRAIN = specs.Train(steps=6, batch=8, evals=3, lr=0.05)
FILTER = NumbersFilter()


def base(seed: int = 0, world: TinyWorld = WORLD, **train: Any) -> specs.Base:
    return specs.Base(world, TRAIN.replace(**train), seed=seed)


def written(teacher: specs.Node, **fields: Any) -> specs.Dataset:
    return specs.Dataset(**{"teacher": teacher, "size": 16, "filter": FILTER, "round": 32, "budget": 32.0, **fields})


def students(
    seeds: int = 2, traits: Sequence[str] = ("owl", "cat"), world: TinyWorld = WORLD, train: specs.Train = TRAIN
) -> Iterator[specs.Student]:
    """Every seed and trait with the three arms, as the default sweep has them."""
    bases = [specs.Base(world, train, seed=seed) for seed in range(seeds)]
    for start, other in specs.derangement(bases):
        for trait in traits:
            data = written(specs.Teacher(start, trait, train))
            yield specs.Student(start, data, train)
            yield specs.Student(other, data, train)
            yield specs.Student(start, written(start), train, trait=trait)


if os.environ.get("SUBL_JAX_TESTS_CACHE"):  # a process that a test has started
    import frugal

    frugal.install()

if "SUBL_JAX_TEST_MOMENTS" in os.environ:  # a test may stop this process
    import moments

    moments.install()
