"""A sweep through the engine against the same sweep as one process per (trait, seed, arm).

The sweep is the default one, made shorter: 2 traits, 3 seeds, 3 arms. Without sharing each process gets one student
and a working directory of its own, so it pretrains its own base, trains its own teacher and writes its own dataset.
Both include the start of Python, the tables and the report. Of the separate processes some of each arm are run, one
after the other, and the rest is taken to need as long. Compiled programs are kept on disk; the first run of a kind
compiles them.
"""

import argparse
import collections
import contextlib
import json
import os
import pathlib
import subprocess
import sys
import tempfile
from typing import Any

import measuring
from measuring import Data, Spread, Table

NAME = "sharing"
# Processes measured of each arm, after a first one that compiles.
PER_ARM = 2
# A base needs some 200 steps until most of its number sequences pass the filter.
SHORT = {"base.steps": 200, "teacher.steps": 40, "teacher.evals": 2, "student.steps": 160, "student.evals": 4}
SHORT |= {"data.size": 2048, "data.round": 1024, "seeds": 3}
TINY = {"teacher.steps": 4, "student.steps": 4, "data.size": 256, "data.round": 256, "seeds": 2}
TRAITS = ("owl", "oak")


def students_of(short: dict[str, int]) -> list[Any]:
    """The students of the default sweep with some of its settings changed."""
    from subl_jax.app import cli

    sweep = cli.load_sweep(str(measuring.ROOT / "sweeps" / "traits.py"))
    config = sweep.get_config()
    config.traits = TRAITS
    config.update_from_flattened_dict(short)
    return list(sweep.sweep(config))


def compute(which: str, workdir: str, short: dict[str, int]) -> None:
    """One process: all students (`all`) or one of them, by its place in the sweep."""
    from subl_jax.app import running
    from subl_jax.runtime import devices

    devices.prepare()
    students = students_of(short)
    with contextlib.redirect_stdout(sys.stderr):
        outcome = running.run(students if which == "all" else [students[int(which)]], workdir, name="sharing")
    assert outcome.all_ok, outcome.lines


def measure(options: argparse.Namespace) -> Data:
    from subl_jax import specs

    short = {**SHORT, **TINY} if options.quick else SHORT
    students = students_of(short)
    of_arm: dict[str, list[int]] = collections.defaultdict(list)
    for i, student in enumerate(students):
        of_arm[specs.arm_of(student)].append(i)
    if options.quick:
        of_arm = {"control": of_arm["control"]}
    with tempfile.TemporaryDirectory() as folder:
        home = pathlib.Path(folder)

        def process(which: int | str, name: str, kind: str) -> Data:
            # A quick run has the user's cache, and nothing to compile the second time.
            cache = None if options.quick else home / f"{kind}-cache"
            return _process(str(which), home / name, cache, short)

        engine = [process("all", f"engine{i}", "engine") for i in range(1 if options.quick else 2)]
        alone: dict[str, list[Data]] = {arm: [] for arm in of_arm}
        for i in range(1 if options.quick else 1 + PER_ARM):
            for arm, places in of_arm.items():
                alone[arm].append(process(places[i], f"{arm}{i}", "alone"))
    return {
        "settings": short,
        "traits": TRAITS,
        "students": {arm: len(places) for arm, places in of_arm.items()},
        "engine": {"cold": engine[0], "warm": engine[-1]},
        "alone": {arm: {"cold": runs[0], "warm": runs[1:] or runs} for arm, runs in alone.items()},
        "flops": {"short": _flops(students), "default": _flops(students_of({}))},
    }


def _process(which: str, workdir: pathlib.Path, cache: pathlib.Path | None, short: dict[str, int]) -> Data:
    """Runs one process to its end: its seconds, and those it spent compiling and computing."""
    command = [sys.executable, __file__, "--compute", which, "--workdir", str(workdir), "--settings", json.dumps(short)]
    environment = dict(os.environ)
    if cache:
        environment["SUBL_JAX_CACHE"] = str(cache)
        environment.pop("JAX_COMPILATION_CACHE_DIR", None)

    def run() -> None:
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr[-3000:]

    seconds = measuring.timed(run)
    groups = json.loads((workdir / "sweep.json").read_text())["groups"]
    return {"seconds": seconds, "groups": groups}


def _flops(students: list[Any]) -> Data:
    """Floating-point operations of the sweep with sharing, and of every student on its own."""
    from subl_jax.engine.plan import make_plan

    def of(some: list[Any]) -> float:
        return sum(group.flops for group in make_plan(some, ()).groups)

    return {"students": len(students), "engine": of(students), "alone": sum(of([student]) for student in students)}


def tables(data: Data) -> list[Table]:
    def computing(run: Data) -> float:
        return sum(group["run_seconds"] for group in run["groups"])

    def compiling(run: Data) -> float:
        return sum(group["compile_seconds"] + group["layout_seconds"] for group in run["groups"])

    counts, rows = data["students"], []
    for state in ("warm", "cold"):
        engine, total = data["engine"][state], collections.Counter()
        for arm, runs in data["alone"].items():
            warm = runs["warm"]
            for name, of in (("all", lambda run: run["seconds"]), ("compute", computing), ("compile", compiling)):
                usual = sum(map(of, warm)) / len(warm)
                total[name] += counts[arm] * usual + (of(runs["cold"]) - usual if state == "cold" else 0)
        ours = {"all": engine["seconds"], "compute": computing(engine), "compile": compiling(engine)}
        what = {"warm": "programs compiled before", "cold": "first run, compiles"}[state]
        for name, each in (("engine, one process", ours), (f"{sum(counts.values())} processes", total)):
            parts = [each["all"], each["compute"], each["compile"], each["all"] - each["compute"] - each["compile"]]
            ratios = [f"{each[part] / ours[part]:.3g}" for part in ("all", "compute")]
            rows.append([f"{name}, {what}", *map(measuring.number, parts), *ratios])
    wall = Spread.of([run["seconds"] for runs in data["alone"].values() for run in runs["warm"]])
    sampled = sum(len(runs["warm"]) for runs in data["alone"].values())
    note = (
        f"The separate processes are extrapolated from {sampled} of {sum(counts.values())} ({wall} s each, warm), run "
        "one after the other. Start: Python, imports, planning, tables and report. In a longer sweep the ratio of all "
        "seconds comes near to that of the compute."
    )
    columns = ["sweep", "seconds", "compute", "compile", "start and report", "× engine", "× engine, compute"]
    flops = [
        [name, str(each["students"]), f"{each['engine']:.3g}", f"{each['alone']:.3g}"]
        + [f"{each['alone'] / each['engine']:.3g}"]
        for name, each in data["flops"].items()
    ]
    return [
        Table("A short sweep, with sharing and without", columns, rows, note),
        Table(
            "Arithmetic that sharing saves (from the plans, not measured)",
            ["sweep", "students", "FLOP, engine", "FLOP, alone", "× engine"],
            flops,
        ),
    ]


if __name__ == "__main__":
    parser = measuring.parser(__doc__)
    for option in ("--compute", "--workdir", "--settings"):
        parser.add_argument(option, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.compute:
        compute(arguments.compute, arguments.workdir, json.loads(arguments.settings))
    else:
        measuring.main(NAME, arguments, measure, tables)
