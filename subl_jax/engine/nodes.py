"""What the engine asks of a node: the only place in the engine that knows how to ask it."""

from typing import Any

import numpy as np

from subl_jax import specs
from subl_jax.stages import Collector, Stage, collecting, input_shapes, stage_of


def stage(node: specs.Node) -> Stage:
    """The stage that computes a node."""
    found = stage_of(node)
    assert found is not None, f"{type(node).__name__} is not computed by a stage"
    return found


def inputs(node: specs.Node) -> dict[str, specs.Node]:
    """The nodes that a node's program reads, by the names its stage knows them by."""
    return node.inputs()


def shapes(node: specs.Node) -> dict[str, Any]:
    """The same, as the shapes of their arrays."""
    return input_shapes(node)


def work(node: specs.Node) -> int:
    """What a lane has to do: training steps, or samples to be kept."""
    return stage(node).work(node)


def whole(node: specs.Node) -> bool:
    """Whether a round is computed in one call, as it would draw all its samples in each."""
    return stage(node).whole(node)


def collects(node: specs.Node) -> bool:
    """Whether the host makes the artefact from the records: a dataset, from samples."""
    return stage(node).collector is not None


def collector(node: specs.Node) -> Collector:
    """What gathers the samples of such a node."""
    return stage(node).collector(node)


def is_data(node: specs.Node) -> bool:
    """Whether the artefact is samples, which people read as files too."""
    return isinstance(node, specs.Data)


def is_model(node: specs.Node) -> bool:
    """Whether the artefact is parameters, which may be let go."""
    return isinstance(node, specs.Trained)


def is_imported(node: specs.Node) -> bool:
    """Whether the node is read from a user's file, and never stored."""
    return isinstance(node, specs.Imported)


def imported(node: specs.Node) -> dict[str, np.ndarray]:
    """The artefact of such a node. Raises InputError where the file has changed."""
    return collecting.read_imported(node)


def name(node: specs.Node) -> str:
    """What messages call it."""
    return type(node).__name__.lower()


def dtype(node: specs.Node) -> str:
    """What its world's arrays are of."""
    return getattr(node.world, "dtype", "float32")
