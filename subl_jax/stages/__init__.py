"""What each kind of node computes, one file a stage. Pure, for one model: no lane axis.

A stage runs in rounds. `start` makes the state; `advance` takes a number of steps and, at the end of a round, returns a
record: the curve's next point, or the samples of the round. The number of steps is traced, so one program serves every
round and every part of one, and taking 0 steps measures a model before it is trained.
"""

from typing import Any

from subl_jax import specs
from subl_jax.stages import shapes
from subl_jax.stages.audit import AUDIT
from subl_jax.stages.distil import DISTIL
from subl_jax.stages.instil import INSTIL
from subl_jax.stages.mix import MIX
from subl_jax.stages.pretrain import PRETRAIN
from subl_jax.stages.prompt import PROMPT
from subl_jax.stages.shapes import world_shapes
from subl_jax.stages.stage import Collector, Stage
from subl_jax.stages.transform import TRANSFORM
from subl_jax.stages.write import WRITE

_STAGES = {each.name: each for each in (PRETRAIN, INSTIL, PROMPT, MIX, WRITE, TRANSFORM, DISTIL, AUDIT)}


def stage_of(node: specs.Node) -> Stage | None:
    """The stage that computes `node`; None for what is read rather than computed."""
    return _STAGES[node.stage] if node.stage else None


def draws(node: specs.Node) -> bool:
    return stage_of(node).whole(node)


def check(node: specs.Node) -> None:
    """Raises InputError where `node` names parameters that its model has not, or asks what its world cannot do."""
    stage = stage_of(node)
    if stage:
        stage.check(node, artefact_shapes)


def artefact_shapes(node: specs.Node) -> dict[str, Any]:
    """The artefact of a node as `jax.ShapeDtypeStruct`s, from its spec alone."""
    stage = stage_of(node)
    return stage.shapes(node, artefact_shapes) if stage else shapes.samples(node.world, node.size)


def input_shapes(node: specs.Node) -> dict[str, Any]:
    """The inputs of a node's stage, by name, as `jax.ShapeDtypeStruct`s."""
    return {name: artefact_shapes(parent) for name, parent in node.inputs().items()}
