"""What a sweep would do, printed without doing it."""

import collections
from collections.abc import Sequence
from typing import Any

import jax
from etils import epath
from rich.console import Console
from rich.table import Table

from subl_jax import specs
from subl_jax.engine import lanes
from subl_jax.engine.plan import Group, Plan, plan_of
from subl_jax.engine.settings import Settings
from subl_jax.stages import input_shapes, stage_of, world_shapes
from subl_jax.storage.store import Store


def show(
    console: Console,
    students: Sequence[specs.Student],
    workdir: epath.PathLike,
    settings: Settings,
    verbose: bool = False,
) -> None:
    """Prints the plan of `students` in `workdir`, which is only read: nodes, groups, and what they cost.

    verbose: also how each group is spread over devices.
    """
    store = Store(epath.Path(workdir).expanduser(), warn=console.print, readonly=True)
    plan = plan_of(students, store)
    console.print(nodes_table(plan))
    if not plan.groups:
        console.print("Nothing is left to compute.")
        return
    console.print(groups_table(plan, settings, verbose))
    for note in plan.notes:
        console.print(f"warning: {note}", style="yellow", highlight=False, markup=False)
    console.print(
        f"{sum(group.flops for group in plan.groups):.2g} FLOP in all. Memory is what a batch holds through a program: "
        "state and inputs, without the activations, which only the compiled program knows."
    )


def nodes_table(plan: Plan) -> Table:
    """Per kind of node: how many the plan computes, and how many it finds stored and reads."""
    pending = collections.Counter(group.stage.name for group in plan.groups for _ in group.nodes)
    stored = collections.Counter(_stage_name(node) for node in plan.reused.values())
    table = Table("stage", "to compute", "stored and used", title=f"{len(plan.rows)} runs", title_justify="left")
    for name in dict.fromkeys([*pending, *stored]):
        table.add_row(name, f"{pending[name]:,}", f"{stored[name]:,}")
    if plan.imported:
        table.add_row("imported data", "0", f"{len(plan.imported):,}")
    return table


def groups_table(plan: Plan, settings: Settings, verbose: bool = False) -> Table:
    """One row per compiled program, in the order they run."""
    table = Table("program", "of", "work of each", "at a time", "batches", "memory", "FLOP", *["layout"] * verbose)
    for group in plan.groups:
        layout = lanes.default_layout(
            len(group.nodes),
            settings.devices or jax.local_device_count(),
            settings.width,
            settings.lanes_a_batch,
            settings.tensor,
            settings.fsdp,
        )
        count = len(group.nodes)
        table.add_row(
            group.stage.name,
            f"{count:,} {group.stage.makes}{'s'[: count != 1]}",
            f"{group.work:,} {group.stage.unit}",
            f"{min(layout.lanes, count):,}",
            f"{-(-count // layout.lanes):,}",
            _bytes(layout.lanes * bytes_a_lane(group)),
            f"{group.flops:.2g}",
            *[str(layout)] * verbose,
        )
    return table


def bytes_a_lane(group: Group) -> int:
    """State and inputs of one lane."""
    node = group.nodes[0]
    inputs = input_shapes(node)
    arrays = world_shapes(node.world)

    def start(values: dict[str, Any], key: Any, inputs: Any) -> Any:
        return group.stage.start(specs.bind(node, values), key, inputs)

    key = jax.eval_shape(lambda: jax.random.key(0))
    state = jax.eval_shape(start, specs.traced_values(node), key, {**inputs, "world": arrays})
    return sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves((state, inputs)))


def _stage_name(node: specs.Node) -> str:
    stage = stage_of(node)
    return stage.name if stage else "imported data"


def _bytes(count: float) -> str:
    for unit in ("B", "KiB", "MiB", "GiB"):
        if count < 1024:
            return f"{count:.3g} {unit}"
        count /= 1024
    return f"{count:.3g} TiB"
