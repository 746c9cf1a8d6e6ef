"""What a stage is: how one kind of node is computed. The engine knows stages only through this."""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any, Protocol

import jax
import numpy as np

from subl_jax import specs

Params = Any
Inputs = dict[str, Any]
Record = dict[str, jax.Array]
ShapesOf = Callable[[specs.Node], dict[str, Any]]

# Purposes that a node's key is folded with, so that no two uses of it share a stream of random numbers. Each is used
# by one stage or more, and never changes its number: stored results depend on it.
INIT, BATCHES, EVALUATE, WRITE, PROBE, NOISE, THEORY, ADAPT, SELECT, MEMBERS = range(10)


class Collector(Protocol):
    """Makes one node's artefact on the host, from the records of its rounds."""

    @property
    def kept(self) -> int:
        """Samples gathered so far."""

    @property
    def enough(self) -> bool:
        """Whether no further round is needed."""

    def add(self, samples: np.ndarray) -> None:
        """One round of samples, in the order they were drawn."""

    def artefact(self) -> dict[str, np.ndarray]:
        """What is stored; of the right shape even where too little was gathered."""

    def info(self) -> dict[str, Any]:
        """JSON scalars for the table of datasets."""

    def shortfall(self) -> str | None:
        """Why there is no result, or None."""

    def table(self) -> Any:
        """Every sample as a DataFrame: prompt, completion, kept, why."""


@dataclasses.dataclass(frozen=True)
class Stage:
    """How one kind of node is computed.

    rounds(node) → how many steps each round takes. The first may be 0: a measurement before training.
    start(spec, key, inputs) → state; advance(spec, key, inputs, state, steps, measure) → (state, record). Where
    `measure`, () bool, is false a round of training goes on: the record is zeros, and evaluating costs nothing. `spec`
    is the node bound (`specs.bind`), `inputs` the artefacts of `node.inputs()` and, as `world`, the world's arrays.
    artefact(state) → what is stored, a dict of arrays; None where a collector makes it on the host.
    shapes(node, of) → the artefact as `jax.ShapeDtypeStruct`s, from the spec alone; `of(parent)` gives a parent's.
    flops(node) → floating-point operations of one lane.
    check(node, of) raises InputError where the program could not be made.
    whole(node): each `advance` draws all samples of its round, however few its steps, and so is never cut.
    work(node) → what a lane has to do, for the display: steps, or samples to be kept.
    collector(node) → makes the artefact on the host; None where the program does.
    makes: what one lane is to a person, as a singular noun.
    finite: a lane whose artefact holds something else than finite numbers has diverged.
    reached(nodes, record) → (lanes,) bool, on the host: which lanes stay as they are from this record on, so that all
    later records are alike; `steps_taken` of the record says after how many steps. None: all go on to the last round.
    """

    name: str
    makes: str
    rounds: Callable[[Any], list[int]]
    start: Callable[..., Any]
    advance: Callable[..., tuple[Any, Record]]
    artefact: Callable[[Any], dict[str, Any]] | None
    shapes: Callable[[Any, ShapesOf], dict[str, Any]]
    flops: Callable[[Any], float]
    check: Callable[[Any, ShapesOf], None] = lambda node, of: None
    whole: Callable[[Any], bool] = lambda node: False
    collector: Callable[[Any], Collector] | None = None
    reached: Callable[[Sequence[Any], dict[str, np.ndarray]], np.ndarray] | None = None
    finite: bool = True

    def inputs(self, node: specs.Node) -> dict[str, specs.Node]:
        return node.inputs()

    def work(self, node: specs.Node) -> int:
        return node.size if self.collector else sum(self.rounds(node))

    @property
    def unit(self) -> str:
        """What `work` counts."""
        return "samples" if self.collector else "steps"


def holding(world: specs.World, inputs: Inputs) -> specs.World:
    """The world with its arrays, which come with the inputs."""
    return world.holding(inputs.get("world", {}))


def asked_by(who: str, inputs: Inputs) -> Inputs:
    """The inputs that a member of a seam asked for (`objective.x`), by the names it knows them by."""
    return {name.removeprefix(f"{who}."): value for name, value in inputs.items() if name.startswith(f"{who}.")}
