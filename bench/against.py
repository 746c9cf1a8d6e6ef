"""This checkout against another one, turn by turn on one machine: what a redesign must not make slower.

    python bench/against.py --other ../old-checkout

Each checkout has a process of its own, which has imported and compiled all before the first turn. Both then take turns,
A B B A A B …: what changes on the machine touches both alike. A ratio is of rates, this checkout over the other:
above 1 this one is faster. Its interval is Student's t over the turns, of logarithms.
"""

import argparse
import json
import math
import pathlib
import subprocess
import sys
from typing import Any

ROOT = pathlib.Path(__file__).resolve().parent.parent
TASKS = ("training_32", "training_128", "writing", "planning", "bookkeeping")
TURNS = 7
STUDENTS = 100_000


# --- in a checkout's own process: only what both checkouts have in `bench/` is used ---


def worker(students: int) -> None:
    """Answers each line, the name of a task, with the seconds that it took."""
    import measuring

    made: dict[str, Any] = {}
    print("ready", flush=True)
    for line in sys.stdin:
        name = line.strip()
        if name not in made:
            made[name] = _prepared(name, students)
            made[name]()  # compiled and warm
            print("warm", flush=True)
        else:
            print(measuring.timed(made[name]), flush=True)


def _prepared(name: str, students: int) -> Any:
    if name.startswith("training"):
        import toy_student

        steps = {"training_32": 600, "training_128": 60}[name]
        lanes = toy_student.trained(int(name.partition("_")[2]), toy_student.lanes.Layout(2, 1, 1))
        return lambda: lanes.run(steps)
    if name == "writing":
        return _writing()
    if name == "planning":
        import planning

        return lambda: planning.plan_once(students)
    import tempfile

    import bookkeeping

    workdir = tempfile.mkdtemp(prefix="bookkeeping-")
    bookkeeping.fill(workdir, students)
    return lambda: bookkeeping.keep_books(workdir, students)


def _writing() -> Any:
    import jax

    from subl_jax import specs
    from subl_jax.worlds.toy_language import ToyLanguage

    world = ToyLanguage()
    write = jax.jit(lambda params, key: world.write(params, jax.random.split(key, 2048), specs.Sampling()))
    params, key = world.init(jax.random.key(0)), jax.random.key(1)
    return lambda: [write(params, key).block_until_ready() for _ in range(4)]


# --- the two of them ---


class Checkout:
    """A process with one checkout's package and benchmarks on its path."""

    def __init__(self, folder: pathlib.Path, students: int) -> None:
        code = f"import sys; sys.path[:0] = [{str(ROOT / 'bench')!r}]; import against; "
        code += f"sys.path[:0] = [{str(folder)!r}, {str(folder / 'bench')!r}]; "
        code += (
            "from subl_jax.runtime import devices"
            if (folder / "subl_jax/runtime").exists()
            else "from subl_jax import devices"
        )
        code += f"; devices.prepare(); against.worker({students})"
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
        self._process = subprocess.Popen([sys.executable, "-c", code], cwd=folder, **pipes)
        assert self._answer() == "ready"

    def ask(self, task: str) -> str:
        self._process.stdin.write(f"{task}\n")
        self._process.stdin.flush()
        return self._answer()

    def close(self) -> None:
        self._process.stdin.close()
        self._process.wait()

    def _answer(self) -> str:
        line = self._process.stdout.readline().strip()
        if not line:
            raise SystemExit(f"a checkout's process ended with {self._process.wait()}")
        return line


def ratio(ours: list[float], theirs: list[float]) -> tuple[float, float, float]:
    """Theirs over ours in seconds, with the ends of its 95 % interval: geometric, over turns."""
    import numpy as np
    import scipy.stats

    logs = np.log(theirs) - np.log(ours)
    half = scipy.stats.t.ppf(0.975, len(logs) - 1) * logs.std(ddof=1) / math.sqrt(len(logs))
    return tuple(float(np.exp(logs.mean() + shift)) for shift in (0.0, -half, half))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--other", type=pathlib.Path, required=True, help="the other checkout")
    parser.add_argument("--turns", type=int, default=TURNS)
    parser.add_argument("--students", type=int, default=STUDENTS)
    parser.add_argument("--tasks", nargs="+", default=TASKS, choices=TASKS)
    options = parser.parse_args()
    found = {}
    for task in options.tasks:
        sides = {
            name: Checkout(folder.resolve(), options.students)
            for name, folder in (("this", ROOT), ("other", options.other))
        }
        for side in sides.values():
            assert side.ask(task) == "warm"
        seconds: dict[str, list[float]] = {"this": [], "other": []}
        for turn in range(options.turns):
            for name in ("this", "other") if turn % 2 else ("other", "this"):
                seconds[name].append(float(sides[name].ask(task)))
        value, low, high = ratio(seconds["this"], seconds["other"])
        for side in sides.values():
            side.close()
        found[task] = {"seconds": seconds, "ratio": value, "low": low, "high": high}
        print(f"{task:>14}: {value:.3f} [{low:.3f}, {high:.3f}] × the other, {options.turns} turns", flush=True)
    path = ROOT / "bench" / "results" / "against.json"
    path.write_text(json.dumps({"benchmark": "against", "students": options.students, "tasks": found}, indent=1) + "\n")


if __name__ == "__main__":
    main()
