"""What a v5e-256 slice and 64 H200s should do with the three kinds of students, and what they run into first. On paper.

Nothing is measured here but the host's bookkeeping, which is planning.json's. A student's time on a chip is the longest
of what its operations, its memory traffic and, where chips share a copy of the weights, their exchange take; all that a
sweep computes besides (bases, teachers, data) is divided among its students as the plan shares it.

    python bench/fleet_on_paper.py    prints the table; docs/benchmarks.md has it from summarise.py
"""

import dataclasses
import itertools
import json
from collections.abc import Mapping, Sequence
from typing import Any

import measuring
import sizing
from measuring import Table, number

SECONDS = 3600.0


@dataclasses.dataclass(frozen=True)
class Fleet:
    """Chips of one kind, with published figures, a second: peak in bfloat16, memory traffic, traffic to a neighbour.

    tile: side of the square that a matrix unit multiplies at once; smaller matrices leave the rest of it idle.
    """

    chips: sizing.Chips
    traffic: float
    neighbour: float
    tile: int


FLEETS = (
    Fleet(dataclasses.replace(sizing.MACHINES[2], name="v5e-256", count=256), 819e9, 200e9, 128),
    Fleet(dataclasses.replace(sizing.MACHINES[1], name="64 × H200", count=64), 4.8e12, 900e9, 64),
)
# Assumed, not measured: of published memory traffic, and of the peak where matrices fill the unit.
_TRAFFIC_REACHED, _SMALL_REACHED = 0.7, 0.3


@dataclasses.dataclass(frozen=True)
class Work:
    """A student, all that it shares with others counted by its share.

    flops: operations; bytes_moved: to and from a chip's memory; narrowest: the side of its smallest common matrix;
    stored: bytes it leaves behind.
    """

    name: str
    flops: float
    bytes_moved: float
    narrowest: int
    stored: float


def small(name: str, file: str, entries: int, narrowest: int) -> Work:
    """A student of a sweep file. entries: numbers that its layers give for one sample, in the forward pass."""
    import jax

    from subl_jax import stages
    from subl_jax.app import cli
    from subl_jax.engine.plan import make_plan

    module = cli.load_sweep(str(measuring.ROOT / "sweeps" / file))
    students = list(module.sweep(module.get_config()))
    plan = make_plan(students, ())
    student = max(students, key=lambda student: student.train.steps)
    parameters = sum(x.size for x in jax.tree.leaves(stages.artefact_shapes(student)["params"]))
    flops = sum(group.flops for group in plan.groups) / len(students)
    # Each entry is written and read forward and backward; parameters, gradients and two moments likewise.
    step = 4 * (4 * student.train.batch * entries + 10 * parameters)
    steps = student.train.steps * flops / stages.DISTIL.flops(student)
    return Work(name, flops, step * steps, narrowest, 4.0 * parameters)


def works() -> list[Work]:
    from subl_jax.worlds.toy_language import ToyLanguage

    toy = ToyLanguage()
    model, length = toy.model, toy.length
    scores = model.heads * length
    a_token = model.layers * (6 * model.width + 2 * model.width + 3 * model.mlp + 2 * scores) + model.vocab
    return [
        small("toy language, default sweep", "traits.py", length * a_token, model.width),
        mnist(),
    ]


def mnist() -> Work:
    """Of the paper's setting (Cloud et al. 2025, section 6): 784-256-256-13, 5 epochs of 60,000 in batches of 1024. A
    teacher as large, of as many steps, serves the four students of sweeps/digits.py that train."""
    sizes = (784, 256, 256, 13)
    parameters = sum((inputs + 1) * outputs for inputs, outputs in itertools.pairwise(sizes))
    steps = 5 * 60_000 / 1024 * (1 + 1 / 4)
    flops = 3 * 2 * 1024 * parameters * steps
    moved = 4 * (4 * 1024 * sum(sizes) + 10 * parameters) * steps
    return Work("MNIST, the paper's setting", flops, moved, 256, 4.0 * parameters)


def _rows(fleet: Fleet, students: Sequence[Work], host: float) -> list[list[str]]:
    rows = []
    for work in students:
        idle = min(1.0, work.narrowest / fleet.tile) ** 2
        parts = {
            "operations": work.flops / (fleet.chips.peak * _SMALL_REACHED * idle),
            "memory traffic": work.bytes_moved / (fleet.traffic * _TRAFFIC_REACHED),
        }
        rows.append(_row(fleet, work.name, parts, 1, host, work.stored))
    config, setting = sizing.shapes()["Qwen2.5-7B"], sizing.Setting()
    lane = sizing.lane_bytes(config, setting.rank) + sizing.activation_bytes(config, setting)
    copies, _ = sizing.placement(fleet.chips, sizing.weight_bytes(config), lane)
    shared = fleet.chips.count // copies
    flops = sizing.student_flops(config, setting)
    # Four sums over the chips of a copy in each layer and pass of a part, of its places in bfloat16.
    parts_trained = setting.samples * setting.epochs / setting.part
    crossing = 4 * config.layers * setting.places * config.width * 2 * 2 * (shared - 1) / shared * parts_trained
    parts = {
        "operations": flops / (fleet.chips.peak * sizing.REACHED * shared),
        "exchange": crossing / fleet.neighbour,
    }
    stored = 4.0 * sizing.adapter_parameters(config, setting.rank)
    rows.append(_row(fleet, "Qwen2.5-7B, LoRA, the paper's setting", parts, shared, host, stored))
    return rows


def _row(fleet: Fleet, name: str, parts: Mapping[str, float], shared: int, host: float, stored: float) -> list[str]:
    # What is exchanged waits for the operations; traffic goes on beside them.
    seconds = sum(parts.values()) if "exchange" in parts else max(parts.values())
    an_hour = fleet.chips.count / shared / seconds * SECONDS
    bottleneck = max(parts, key=lambda part: parts[part])
    hosts = SECONDS / host
    return [
        fleet.chips.name,
        name,
        ", ".join(f"{part} {number(value)} s" for part, value in parts.items()),
        str(shared),
        bottleneck,
        number(an_hour),
        number(an_hour * stored / SECONDS / 1e6),
        number(100 * an_hour / hosts) + " %",
    ]


def host_seconds() -> float:
    """Of bookkeeping per student, as measured for the largest sweep of bookkeeping.json."""
    import statistics

    largest = json.loads((measuring.RESULTS / "bookkeeping.json").read_text())["sizes"][-1]
    return sum(statistics.median(each) for each in largest["seconds"].values()) / largest["students"]


def tables(data: Any = None) -> Sequence[Table]:
    host, students = host_seconds(), works()
    rows = [row for fleet in FLEETS for row in _rows(fleet, students, host)]
    columns = ["fleet", "student", "time on the chips of a copy", "chips a copy", "bottleneck", "students an hour"]
    columns += ["MB/s stored", "host's bookkeeping"]
    fills = f"what they fill of a matrix unit (TPU {FLEETS[0].tile}², GPU {FLEETS[1].tile}²)"
    note = (
        f"Measured on one H200: {sizing.REACHED:.0%} of the published peak for 7B. Assumed, **not measured**: the same "
        f"on v5e, {_SMALL_REACHED:.0%} for small matrices, of {fills}, and {_TRAFFIC_REACHED:.0%} of the published "
        f"memory traffic. Host's bookkeeping: from specs to the report at {number(1e3 * host)} ms a student on one "
        "core (measured, toy language), as a share of the hour; over 100 % the host is slower than the chips. What is "
        "done while chips compute is left out: storing, datasets, W&B."
    )
    return [Table("Fleets, worked out", columns, rows, note)]


if __name__ == "__main__":
    from rich.console import Console

    for table in tables():
        Console(width=220).print(table.rich())
