"""Time and memory of planning a large sweep: making its specs, their keys, the plan and its groups.

The sweep is of the default's form with a learning rate as a further axis of ten values. `--profile` prints where the
time goes.
"""

import argparse
import cProfile
import itertools
import pstats
import tracemalloc
from collections.abc import Iterator
from typing import Any

import measuring
from measuring import Data, Spread, Table

NAME = "planning"
COUNTS = (1_000, 10_000, 100_000)
ROUNDS = 5
PARTS = ("specs", "check", "plan", "lineage")


def students_of(count: int) -> Iterator[Any]:
    """`count` students: base seeds × 4 traits × 3 arms × 10 learning rates, cut off at `count`."""
    return itertools.islice(_students(), count)


def _students() -> Iterator[Any]:
    from subl_jax import specs
    from subl_jax.channels.numbers import NumbersFilter
    from subl_jax.worlds.toy_language import ToyLanguage

    world, data = ToyLanguage(), {"size": 16_384, "filter": NumbersFilter()}
    base_train, teacher_train = specs.Train(steps=600, batch=128), specs.Train(steps=200, batch=64)
    for seed in itertools.count():
        base, other = (specs.Base(world, base_train, seed=s) for s in (seed, seed + 1))
        for trait in ("owl", "fox", "oak", "willow"):
            teacher = specs.Teacher(base, trait, teacher_train)
            written, plain = specs.Dataset(teacher, **data), specs.Dataset(base, **data)
            for start, samples in ((base, written), (other, written), (base, plain)):
                for i in range(10):
                    train = specs.Train(steps=640, batch=128, lr=1e-4 * (i + 1))
                    yield specs.Student(start, samples, train, trait=trait)


def plan_once(count: int) -> tuple[Data, Any]:
    """Seconds of each part, and the plan. Keys are made where they are first needed: in the check."""
    from subl_jax import specs
    from subl_jax.engine.plan import make_plan

    parts = measuring.Parts()
    made = parts.made
    parts.time("specs", lambda: list(students_of(count)))
    parts.time("check", lambda: specs.checked(made["specs"]))
    parts.time("plan", lambda: make_plan(made["specs"], ()))
    parts.time("lineage", lambda: [specs.lineage(student) for student in made["specs"]])
    return parts.seconds, made["plan"]


def measure(options: argparse.Namespace) -> Data:
    counts, rounds = (COUNTS[:1], 2) if options.quick else (COUNTS, ROUNDS)
    if options.profile:
        profile = cProfile.Profile()
        profile.runcall(plan_once, counts[-1])
        pstats.Stats(profile).sort_stats("tottime").print_stats(20)
    return {"sizes": [_size(count, rounds) for count in counts]}


def _size(count: int, rounds: int) -> Data:
    seconds: dict[str, list[float]] = {part: [] for part in PARTS}
    plan_once(count)
    for _ in range(rounds):
        each, plan = plan_once(count)
        for part in PARTS:
            seconds[part].append(each[part])
    groups, nodes = len(plan.groups), plan.pending
    del plan
    # Apart from the timings: counting allocations slows Python down severalfold.
    tracemalloc.start()
    kept = plan_once(count)
    memory = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    del kept
    return {
        "students": count,
        "nodes": nodes,
        "groups": groups,
        "seconds": seconds,
        "bytes_kept": memory[0],
        "bytes_peak": memory[1],
    }


def tables(data: Data) -> list[Table]:
    rows = []
    for size in data["sizes"]:
        needed = [sum(parts) for parts in zip(*(size["seconds"][part] for part in PARTS[:3]), strict=True)]
        rows.append(
            [f"{size['students']:,}", f"{size['nodes']:,}", str(size["groups"]), str(Spread.of(needed))]
            + [str(Spread.of(size["seconds"][part])) for part in PARTS]
            + [f"{size['bytes_kept'] / 2**20:.0f}", f"{size['bytes_peak'] / 2**20:.0f}"]
        )
    columns = ["students", "nodes", "groups", "to a plan, s", *PARTS, "kept, MiB", "peak, MiB"]
    note = (
        "To a plan: specs, check, which makes the keys and run ids, and plan. Lineages are made for the tables at the "
        "end. Memory is the Python objects of students and plan (kept), and at most, lineages included (peak)."
    )
    return [Table("Planning", columns, rows, note)]


if __name__ == "__main__":
    parser = measuring.parser(__doc__)
    parser.add_argument("--profile", action="store_true", help="print the functions that take the most time")
    measuring.main(NAME, parser.parse_args(), measure, tables)
