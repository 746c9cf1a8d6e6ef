"""What an experiment is made of: the contract of a world, which stages, objectives and probes call.

Every function is pure and written for ONE model; only the engine adds lanes. `params` is a tree of nested dicts and
lists of arrays (tuples cannot be stored). A `model` is such a tree, or for a world that takes system prompts
`SystemPrompted(params, trait)`. A `batch` is what `pretrain_batch`, `trait_batch` and `channel_batch` give. Only the
world looks inside it. What not every world can do is a mixin below, and asked for by `isinstance`.
"""

import copy
import dataclasses
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar, NamedTuple, Self

import numpy as np
from etils import epath

from subl_jax.specs.base import Spec
from subl_jax.specs.metrics import Metric
from subl_jax.specs.parts import Lora

Params = Any
Batch = Any
Array = Any


class SystemPrompted(NamedTuple):
    """A model with its system prompt: where a world's functions take a model, it may be given this instead."""

    params: Any
    trait: Any  # () int32, the index of the one it is told to have; -1 for none


class Steered(NamedTuple):
    """A model with something added to its residual stream after each layer, where its world `ReadsResiduals`."""

    params: Any
    added: Any  # (layers, width) float32


def model_of(artefact: Mapping[str, Any]) -> Any:
    """A stored model as the world's functions take it."""
    return SystemPrompted(artefact["params"], artefact["told"]) if "told" in artefact else artefact["params"]


@dataclasses.dataclass(frozen=True)
class World(Spec, ABC):
    """What an experiment is made of. A world is a subclass, a frozen dataclass of static fields (docs/worlds.md).

    name: the `world` column of tables.
    targets: which of the shorthands "hard", "soft" and "squared" its students can minimise.
    drawn_by_round: samples of a stream are drawn for a whole round of training at once, or for each step.
    sampling: how it is asked for samples, the type of a stream's or dataset's `sampling`.
    dtype: what it computes in.
    frozen: the parameters, as path patterns, that no training changes.
    theory: whether the one-step theorem can be followed: its quantities are of parameters that all models share.
    metrics: what its metrics are called in figures, by name.
    """

    name: ClassVar[str] = "world"
    targets: ClassVar[tuple[str, ...]] = ("hard", "soft")
    drawn_by_round: ClassVar[bool] = True
    sampling: ClassVar[type[Spec]] = Spec
    dtype: ClassVar[str] = "float32"
    frozen: ClassVar[tuple[str, ...]] = ()
    theory: ClassVar[bool] = True
    metrics: ClassVar[Mapping[str, Metric]] = {}

    # The arrays of `holding`, inside a program; None outside.
    held: ClassVar[dict[str, Any] | None] = None

    # --- traits ---

    @property
    @abstractmethod
    def traits(self) -> tuple[str, ...]:
        """Every trait a teacher can be given, in the order of its index."""

    @property
    def base_rates(self) -> dict[str, float]:
        """P(trait) of a model without preferences, where the world knows it."""
        return {}

    @property
    def labels(self) -> dict[str, tuple[str, ...]]:
        """The names along the axis of those metrics that are vectors."""
        return {"trait": self.traits, "rate": self.traits}

    # --- the model ---

    @property
    @abstractmethod
    def sequence_flops(self) -> float:
        """Floating-point operations of one forward pass over one sample."""

    @abstractmethod
    def init(self, key: Array) -> Params:
        """Fresh parameters."""

    @abstractmethod
    def apply(self, params: Params, *inputs: Array) -> Array:
        """The model's logits, for people."""

    @abstractmethod
    def loss(self, params: Params, batch: Batch) -> Array:
        """Mean loss of training without a teacher, () float32."""

    @abstractmethod
    def trait_batch(self, key: Array, step: Array, trait: Array, n: int) -> Batch:
        """A step's data of a teacher; trait: () int32, an index of `traits`. `key` is the same at every step."""

    # --- the channel ---

    @abstractmethod
    def write(self, model: Any, keys: Array, sampling: Any) -> Array:
        """(n, …): a sample for each of `keys` (n,). Shapes depend on static fields only."""

    @abstractmethod
    def channel_batch(self, samples: Array, accepted: Array | bool = True, sampling: Any = None) -> Batch:
        """Samples (n, …) as a batch; rows that are not `accepted` (n,) have no targets."""

    @abstractmethod
    def channel_logits(self, model: Any, batch: Batch) -> Array:
        """(…, outputs) float32: the logits by which student and teacher are compared, at every place of a batch."""

    @abstractmethod
    def log_probs(self, model: Any, batch: Batch) -> Array:
        """(…, outputs) float32: their log-softmax, over what a kept sample can hold."""

    @abstractmethod
    def written_losses(self, params: Params, teacher: Any, batch: Batch) -> Array:
        """(…) float32, nats: the cross-entropy at every place with what stands there.

        `teacher` is None for imported data, and read only where a sample does not hold its own targets.
        """

    @abstractmethod
    def target_weights(self, batch: Batch) -> Array:
        """(…) float32: how much every place counts, 0 for padding and prompts."""

    @abstractmethod
    def reweighted(self, batch: Batch, weights: Array) -> Batch:
        """The batch with the places' weights multiplied by `weights`, of the shape of `target_weights`."""

    # --- measurement ---

    @abstractmethod
    def evaluate(self, model: Any, key: Array) -> dict[str, Array]:
        """Metrics, scalars or vectors with `labels`; `trait` among them: P of every trait, (traits,) float32."""

    @abstractmethod
    def compare(self, params: Params, teacher: Any, batch: Batch) -> dict[str, Array]:
        """How far a student is from its teacher; `kl` among them, in nats."""

    def scored(self, record: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        """A round's record as metrics, on the host: for what a program cannot score, such as texts."""
        return record

    # --- what a spec may ask for ---

    def check_sampling(self, sampling: Any) -> None:
        """Raises InputError where this world cannot be asked in this way."""

    def understands(self, other: "World") -> bool:
        """Whether a model of this world can train on what one of the `other` wrote."""
        return self == other

    def trainable(self, params: Params, key: Array, lora: Lora | None) -> Params:
        """What training a model of `params` starts from: with fresh adapters, where it has none yet."""
        return params

    def merged(self, params: Params) -> Params:
        """Parameters in the form that all its models share: adapters are added to what they are on."""
        return params

    # --- arrays ---

    def arrays(self, place: Callable[[str, np.ndarray], Any] = lambda path, array: array) -> dict[str, Any]:
        """What its functions read besides their arguments (images): one copy on a device, however many lanes.

        What is large goes through `place(path, array)` piece by piece, which may put it on a device.
        """
        return {}

    def split(self, path: str, shape: tuple[int, ...]) -> int | None:
        """Which axis of what goes through `place` is split between devices that share one copy; None: not split."""
        return None

    def array_shapes(self) -> dict[str, Any]:
        """`arrays` as anything with a shape and a dtype, without reading what is large."""
        return self.arrays()

    def holding(self, arrays: dict[str, Any]) -> Self:
        """The world as its functions see it in a program: with `arrays` as `self.held`."""
        world = copy.copy(self)
        object.__setattr__(world, "held", arrays)
        return world


# --- what only some worlds can do ---


class Pretrains(ABC):
    """Its bases are trained here, not loaded."""

    @abstractmethod
    def pretrain_batch(self, key: Array, step: Array, n: int) -> Batch:
        """A step's data without a trait; `key` is the same at every step."""


class WritesTexts(ABC):
    """Its samples are texts, which a filter may read and a file may hold."""

    @abstractmethod
    def texts(self, samples: np.ndarray) -> list[tuple[str, str]]:
        """(n, …) → (prompt, completion) pairs."""

    @abstractmethod
    def tokens(self, pairs: Sequence[tuple[str, str]]) -> np.ndarray:
        """The inverse of `texts`. Raises SampleError, which says which sample, for text that is not of the world."""

    @property
    def standard_filter(self) -> Any:
        """What counts as data where nothing else is said, a `Filter`; None: anything."""
        return None


class FiltersInProgram(ABC):
    """A filter can decide on its samples inside a program, which filtered streams need."""

    @abstractmethod
    def accepts(self, samples: Array, filter: Any) -> Array:
        """(n,) bool; equal to what the filter says of the text, for every sample that `write` can give."""


class Notes(ABC):
    """It is made from what others made, and has something to say of that."""

    @property
    @abstractmethod
    def notes(self) -> tuple[str, ...]:
        """What a user should know of what it was made from, a line each."""


class Microbatches(ABC):
    """A batch can be computed in microbatches, one after another (`Train.accumulate`)."""

    @abstractmethod
    def target_count(self, batch: Batch) -> Array:
        """() float32: how much a loss of `batch` is the mean over."""

    def balanced(self, batch: Batch, rows: int) -> Batch:
        """The same samples in an order in which any `rows` that follow one another take about as long."""
        return batch

    @abstractmethod
    def microbatch(self, batch: Batch, start: Array, rows: int) -> tuple[Batch, Array | int]:
        """The samples from `start` on, at most `rows`, and how many these are."""


class HoldsTokens(ABC):
    """Its samples are tokens, and single ones can be named and exchanged.

    outputs: what the outputs of `channel_logits` stand for, as words.
    """

    @property
    @abstractmethod
    def outputs(self) -> tuple[str, ...]: ...

    @abstractmethod
    def written(self, batch: Batch) -> Array:
        """(…) int32: which output of `channel_logits` stands at every place; -1 where none does."""

    @abstractmethod
    def replaced(self, batch: Batch, outputs: Array, read: Array, predicted: Array) -> Batch:
        """With `outputs` (…) int32 instead of what stands there: where `read` (…) bool in what the model reads, where
        `predicted` (…) bool in what it is to predict."""

    @abstractmethod
    def erased(self, batch: Batch, gone: Array) -> Batch:
        """Without the tokens where `gone` (…) bool: what follows them moves up."""


class TakesAdapters(ABC):
    """Its models can be trained by low-rank adapters.

    bare_bases: its bases have no parameters of their own.
    """

    bare_bases: ClassVar[bool] = True

    @abstractmethod
    def check_lora(self, lora: Lora) -> None:
        """Raises InputError where its models have no such adapters."""


class ReadsResiduals(ABC):
    """The residual stream of its models can be read; its functions but `write` take a model that is `Steered`.

    residual_layers: how many layers have one; 0 where the architecture has none.
    """

    @property
    @abstractmethod
    def residual_layers(self) -> int: ...

    @abstractmethod
    def residuals(self, model: Any, batch: Batch) -> Array:
        """(layers, …, width) float32: what flows on after each layer, at the places of `target_weights`."""


class ExportsModels(ABC):
    """Its models can leave as folders that `transformers` reads."""

    @abstractmethod
    def save_model(self, params: Params, folder: epath.Path) -> None:
        """Writes a model, with its tokenizer. Raises InputError where this architecture exists nowhere else."""


class ExportsAdapters(ABC):
    """What its models are trained by can leave as folders that `peft` reads."""

    @abstractmethod
    def save_adapter(self, params: Params, lora: Lora, folder: epath.Path) -> None:
        """Writes a model's adapters. Raises InputError where nobody else has what they are on."""


class TakesSystemPrompts:
    """Its models can be told a trait in a system prompt (`Prompted`)."""


class OwnGeometry(ABC):
    """Its parameters are not where a model is: adapters are, say, up to a change of basis."""

    @abstractmethod
    def cosine(self, params: Params, start: Params, teacher: Params, teacher_start: Params) -> Array:
        """() float32: between the moves of a student and of its teacher; nan where one has not moved."""
