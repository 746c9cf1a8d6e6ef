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
    from subl_jax.channels.numbers import NumbersFilter
    from subl_jax.worlds.toy_language import ToyLanguage

    world = ToyLanguage(width=16, heads=2, kv_heads=2, mlp=32)
    # So long until enough of what a base writes passes the filter.
    bases = [specs.Base(world, specs.Train(steps=400, batch=64, lr=5e-3), seed=seed) for seed in range(2)]
    data = {"size": 512, "round": 512, "filter": NumbersFilter(), "budget": 16.0}
    made = []
    for base, other in specs.derangement(bases):
        for trait in TRAITS:
            teacher = specs.Teacher(base, trait, specs.Train(steps=20, batch=32))
            written, plain = specs.Dataset(teacher, **data), specs.Dataset(base, **data)
            for start, samples in ((base, written), (other, written), (base, plain)):
                train = specs.Train(steps=steps, batch=32, evals=4)
                # No two alike: the controls of two traits would be one node.
                seeds = range(len(made), len(made) + count // 12)
                made += [specs.Student(start, samples, train, seed=seed, trait=trait) for seed in seeds]
    return made


def measure(options: argparse.Namespace) -> Data:
    from subl_jax.runtime import devices

    devices.prepare()
    counts, steps, rounds = (COUNTS[:1], 8, 1) if options.quick else (COUNTS, 40, ROUNDS)
    runs: dict[str, list[Data]] = {str(count): [] for count in counts}

    def run(count: int) -> None:
        runs[str(count)].append(_sweep(students_of(count, steps)))

    # The first run of each size, untimed, compiles; it is dropped below.
    measuring.interleaved({str(count): lambda count=count: run(count) for count in counts}, rounds)
    return {"steps": steps, "runs": {count: each[1:] for count, each in runs.items()}}


def _sweep(students: list[Any]) -> Data:
    """One sweep in a fresh working directory: its wall clock, tables and report included, and its groups."""
    from rich.console import Console

    from subl_jax.app import running
    from subl_jax.results.load import load
    from subl_jax.tracking.terminal import Progress

    with tempfile.TemporaryDirectory() as folder:
        quiet = Progress(Console(file=io.StringIO()))
        seconds = measuring.timed(lambda: running.run(students, folder, name="students", progress=quiet))
        statuses = load(folder).runs.status
        assert (statuses == "ok").all(), statuses.value_counts()
        sweep = json.loads((pathlib.Path(folder) / "sweep.json").read_text())
    return {"seconds": seconds, "computing_seconds": sweep["seconds"], "groups": sweep["groups"]}


def tables(data: Data) -> list[Table]:
    rows: list[list[str]] = []
    fewer: tuple[int, float] | None = None
    for count, runs in data["runs"].items():
        students = int(count)
        whole = Spread.of([run["seconds"] for run in runs])
        training = [_seconds(run, "distil") for run in runs]
        outside = [run["seconds"] - _seconds(run) for run in runs]
        layouts = {group["layout"] for run in runs for group in run["groups"] if group["stage"] == "distil"}
        added = f"{1000 * (whole.median - fewer[1]) / (students - fewer[0]):.3g}" if fewer else "–"
        per_student = [str(Spread.of([1000 * each / students for each in times])) for times in (training, outside)]
        mean = measuring.number(1000 * whole.median / students)
        rows.append([count, str(whole), mean, added, *per_student, ", ".join(sorted(layouts))])
        fewer = (students, whole.median)
    columns = ["students", "seconds", "ms a student", "ms an added student", "training", "outside groups", "layout"]
    note = (
        f"{data['steps']} steps a student; median (range) of the runs. Bases, teachers and datasets are the same for "
        "every size, so an added student costs its training, and its part of storing, tables and report (outside "
        "groups), both in ms a student."
    )
    return [Table("Cost per student", columns, rows, note)]


def _seconds(run: Data, stage: str | None = None) -> float:
    """Of one stage its running; of all groups everything, compiling included."""
    if stage:
        return sum(group["run_seconds"] for group in run["groups"] if group["stage"] == stage)
    return sum(group[f"{kind}_seconds"] for group in run["groups"] for kind in ("run", "compile", "layout"))


if __name__ == "__main__":
    measuring.main(NAME, measuring.parser(__doc__).parse_args(), measure, tables)
