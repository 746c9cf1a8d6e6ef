"""A whole batch of lanes, run by the engine's own program: what benchmarks time."""

from typing import Any

import jax
import numpy as np

from subl_jax import specs, stages
from subl_jax.engine import lanes


class Lanes:
    """Nodes that differ from `node` in their seed, one for each lane of `layout`, all on the same inputs.

    inputs: of one lane, as its stage takes them.
    """

    def __init__(self, node: specs.Node, layout: lanes.Layout, inputs: Any) -> None:
        nodes = [node.replace(seed=seed) for seed in range(layout.lanes)]
        self.layout = layout
        self.program = lanes.compile_program(stages.stage_of(node), node, layout, stages.input_shapes(node))
        own = nodes[self.program.own]
        rows = jax.tree.map(lambda x: np.broadcast_to(x, (len(own), *np.shape(x))), inputs)
        keys = np.stack([lanes.lane_key(node) for node in own])
        self._arguments = self.program.put(keys, lanes.lane_values(own), rows)
        self._state = self.program.start(self._arguments)

    def run(self, steps: int) -> None:
        """`steps` steps of every lane, and the measurement at the end of a round."""
        self._state, record = self.program.advance(self._arguments, self._state, steps)
        jax.block_until_ready((self._state, record))
