"""What the engine asks of a node: the only place in the engine that knows how to ask it."""

from typing import Any

from subl_jax import specs
from subl_jax.stages import Collector, Stage, input_shapes, stage_of


def stage(node: specs.Node) -> Stage:
    """The stage that computes a node."""
    found = stage_of(node)
    assert found is not None, f"{type(node).__name__} is not computed by a stage"
    return found


def shapes(node: specs.Node) -> dict[str, Any]:
    """The artefacts that its program reads, by name, as shapes."""
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


def name(node: specs.Node) -> str:
    """What messages call it."""
    return type(node).__name__.lower()


def dtype(node: specs.Node) -> str:
    """What its world computes in."""
    return node.world.dtype
