"""What an architecture is: a frozen, hashable description with its sizes, whose parameters are passed in and out.

A member is one file. It subclasses `Decodes` (or `Model`, where it writes no text), gives itself a `name`, and is then
a choice (`table.py`): one in this folder by being there, a user's own once its module is imported. It is written for
one model; lanes and devices are the engine's.
"""

import abc
from typing import Any, ClassVar, NamedTuple, Self

import jax

Params = Any
Adapters = Any
State = Any
Prefix = Any

# The members that have been imported, by name.
MEMBERS: dict[str, type["Model"]] = {}


class Site(NamedTuple):
    """A projection of every layer that adapters can be put on: where it is in a layer, and its sizes."""

    path: tuple[str, ...]
    inputs: int
    outputs: int


class Shared(NamedTuple):
    """What all rows of a batch have in common while they decode.

    adapters: low-rank updates (`lora.update`). prefix: what was read before all prompts (`Decodes.read_prefix`).
    tokens: (n,) int32, the only ones of the vocabulary whose logits are computed; None: all of them.
    """

    params: Params
    adapters: Adapters | None = None
    prefix: Prefix | None = None
    tokens: jax.Array | None = None


class Model(abc.ABC):
    """An architecture with its sizes. Equal ones are one program."""

    name: ClassVar[str]

    def __init_subclass__(cls, **options: Any) -> None:
        super().__init_subclass__(**options)
        if "name" in vars(cls):
            MEMBERS[cls.name] = cls

    @abc.abstractmethod
    def init(self, key: jax.Array) -> Params:
        """Fresh parameters, float32."""

    @abc.abstractmethod
    def apply(self, params: Params, inputs: jax.Array) -> jax.Array:
        """Logits. Of a language model, inputs: (batch, length) int32 → (batch, length, vocab) float32, where those at a
        token are for the next one."""

    @abc.abstractmethod
    def flops(self, length: int = 1) -> float:
        """Floating-point operations of a forward pass: per token in a sequence of `length`, or per image."""


class Decodes(Model):
    """A language model that draws tokens: it reads prompts into a state, and goes on one token at a time."""

    vocab: int

    @classmethod
    @abc.abstractmethod
    def of(cls, *, vocab: int, width: int, layers: int, heads: int, kv_heads: int, mlp: int, dtype: str) -> Self:
        """The model of these sizes. One that has no use for a size passes over it.

        Raises:
          InputError: the sizes do not fit together.
        """

    @abc.abstractmethod
    def apply(
        self,
        params: Params,
        inputs: jax.Array,
        at: jax.Array | None = None,
        adapters: Adapters | None = None,
    ) -> jax.Array:
        """As of `Model`. at: (batch, n) int32, the only places whose logits are computed: → (batch, n, vocab)."""

    @abc.abstractmethod
    def empty(self, shared: Shared, rows: int, longest: int, room: int) -> State:
        """The state of `rows` that have read nothing, for prompts of up to `longest` tokens and `room` steps."""

    @abc.abstractmethod
    def read_prefix(self, params: Params, tokens: jax.Array, length: jax.Array, adapters: Adapters | None) -> Prefix:
        """What all prompts begin with, read once. tokens: (longest,) int32, of which the first `length` count."""

    @abc.abstractmethod
    def read(
        self, shared: Shared, prompts: jax.Array, lengths: jax.Array, room: int, most: int | None = None
    ) -> tuple[jax.Array, State]:
        """Reads prompts that are padded on the right with anything.

        Args:
          prompts: (rows, longest) int32; lengths: (rows,), 0 for a row that is not there.
          room: how many steps the state has room for, static.
          most: static; no more tokens than these are there, so that the rest need not be computed. None: all may be.

        Returns:
          The logits after each prompt, (rows, vocab or tokens) float32, and the state.
        """

    @abc.abstractmethod
    def step(self, shared: Shared, state: State, tokens: jax.Array) -> tuple[jax.Array, State]:
        """Reads one token of each row, (rows,) int32: the logits after it, (rows, vocab or tokens), and the state."""

    @abc.abstractmethod
    def gather(self, state: State, other: State, place: jax.Array, taking: jax.Array) -> State:
        """`state` with the rows of `taking` (rows,) bool replaced by rows `place` (rows,) int32 of `other`.

        `other` has just read prompts, and may have less room.
        """

    def layers_apart(self) -> "Decodes":
        """The same model, with its layers laid out one by one where that makes its steps faster."""
        return self

    def taken_apart(self, tree: Any) -> Any:
        """A `Shared` or a state of this model as `layers_apart` has it."""
        return tree


class TakesAdapters(abc.ABC):
    """A model whose projections take low-rank updates (`lora.py`). `layers` is how many layers it has."""

    layers: int

    @abc.abstractmethod
    def adapter_sites(self) -> dict[str, Site]:
        """By the name of a projection, as in `Lora.modules`."""


class HasResiduals(abc.ABC):
    """A model whose residual stream can be read and changed. `layers` is how many layers it has."""

    layers: int

    @abc.abstractmethod
    def residuals(self, params: Params, inputs: jax.Array, added: jax.Array | None = None) -> jax.Array:
        """What flows on after each layer: inputs (n, length) → (layers, n, length, width) float32; `added` to it, of
        a steered model, included."""

    @abc.abstractmethod
    def steered(self, params: Params, inputs: jax.Array, added: jax.Array, at: jax.Array | None = None) -> jax.Array:
        """As `Decodes.apply`, where `added` (layers, width) is added after each layer, at every token."""
