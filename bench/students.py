"""Cost per student against the number of students: it must not grow.

A small toy language; the students share two bases, four teachers and their datasets, and differ in their seeds. Every
run has a working directory of its own and does everything anew, except compiling: each size runs once before.
"""

import argparse
import io
import json
import pathlib
import tempfile
from typing import Any

import measuring
from measuring import Data, Spread, Table

NAME = "students"
COUNTS = (12, 48, 192)
ROUNDS = 2
TRAITS = ("owl", "oak")


def students_of(count: int, steps: int) -> list[Any]:
    """`count` students, a multiple of 12: 2 bases × 2 traits × 3 arms × seeds."""
    from subl_jax import specs
    from subl_jax.filters import NumbersFilter
    from subl_jax.worlds.toy_language import ToyLanguage

    world = ToyLanguage(width=16, heads=2, kv_heads=2, mlp=32)
    bases = [specs.Base(world, specs.Train(steps=2 * steps, batch=32, lr=3e-3), seed=seed) for seed in range(2)]
    data = {"size": 512, "round": 512, "filter": NumbersFilter(), "budget": 64.0}
    made = []
    for base, other in specs.derangement(bases):
        for trait in TRAITS:
            teacher = specs.Teacher(base, trait, specs.Train(steps=steps // 2, batch=32))
            written, plain = specs.Dataset(teacher, **data), specs.Dataset(base, **data)
            for start, samples in ((base, written), (other, written), (base, plain)):
                train = specs.Train(steps=steps, batch=32, evals=4)
                made += [specs.Student(start, samples, train, seed=seed, trait=trait) for seed in range(count // 12)]
    return made


def measure(options: argparse.Namespace) -> Data:
    from subl_jax import devices

    devices.prepare()
    counts, steps, rounds = (COUNTS[:1], 8, 1) if options.quick else (COUNTS, 80, ROUNDS)
    runs: dict[str, list[Data]] = {str(count): [] for count in counts}

    def run(count: int) -> None:
        runs[str(count)].append(_sweep(students_of(count, steps)))

    # The first run of each size, untimed, compiles; it is dropped below.
    measuring.interleaved({str(count): lambda count=count: run(count) for count in counts}, rounds)
    return {"steps": steps, "runs": {count: each[1:] for count, each in runs.items()}}


def _sweep(students: list[Any]) -> Data:
    """One sweep in a fresh working directory: its wall clock, tables and report included, and its groups."""
    from rich.console import Console

    from subl_jax import running
    from subl_jax.progress import Progress

    with tempfile.TemporaryDirectory() as folder:
        quiet = Progress(Console(file=io.StringIO()))
        seconds = measuring.timed(lambda: running.run(students, folder, name="students", progress=quiet))
        sweep = json.loads((pathlib.Path(folder) / "sweep.json").read_text())
    return {"seconds": seconds, "computing_seconds": sweep["seconds"], "groups": sweep["groups"]}


def tables(data: Data) -> list[Table]:
    rows = []
    for count, runs in data["runs"].items():
        students = int(count)
        whole = Spread.of([run["seconds"] for run in runs])
        distil = [sum(g["run_seconds"] for g in run["groups"] if g["stage"] == "distil") for run in runs]
        grouped = [
            sum(g["run_seconds"] + g["compile_seconds"] + g["layout_seconds"] for g in run["groups"]) for run in runs
        ]
        outside = [run["seconds"] - each for run, each in zip(runs, grouped, strict=True)]
        layouts = {g["layout"] for run in runs for g in run["groups"] if g["stage"] == "distil"}
        per_student = [Spread.of([1000 * each / students for each in times]) for times in (distil, outside)]
        rows.append([count, str(whole), measuring.number(1000 * whole.median / students), *map(str, per_student)])
        rows[-1].append(", ".join(sorted(layouts)))
    columns = ["students", "seconds", "ms per student", "of which training", "of which outside groups", "layout"]
    note = f"{data['steps']} steps a student; median (range) of the runs. Bases, teachers and datasets are the same."
    return [Table("Cost per student", columns, rows, note)]


if __name__ == "__main__":
    measuring.main(NAME, measuring.parser(__doc__).parse_args(), measure, tables)
