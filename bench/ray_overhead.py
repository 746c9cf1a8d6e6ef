"""What a batch costs more as a task on a Ray cluster than in one process: hand over, read, store, report.

Two sweeps that differ only in how many batches they have, of one lane and two steps each: what the larger one takes
longer, divided by the difference in batches, has no start in it. On Ray one worker of one CPU computes, on this
machine; a real cluster adds its network. The package has to be installed: the worker imports it.
"""

import argparse
import tempfile
from typing import Any

import measuring
from measuring import Data, Spread, Table

NAME = "ray_overhead"
BATCHES = (8, 72)
ROUNDS = 3
NULL_TASKS = 500


def students(count: int) -> list[Any]:
    """`count` students that differ in their seed, of one base and one small dataset."""
    from subl_jax import specs
    from subl_jax.channels.numbers import NumbersFilter
    from subl_jax.worlds.toy_language import ToyLanguage

    base = specs.Base(ToyLanguage(), specs.Train(steps=2, batch=8))
    data = specs.Dataset(base, size=8, round=512, budget=1e4, filter=NumbersFilter())
    train = specs.Train(steps=2, batch=8)
    return [specs.Student(base, data, train, seed=seed, trait="owl") for seed in range(count)]


def measure(options: argparse.Namespace) -> Data:
    import ray

    from subl_jax.runtime import devices

    devices.prepare()  # as the command line does: programs come from the cache
    rounds, batches = (1, (2, 6)) if options.quick else (ROUNDS, BATCHES)
    seconds: dict[str, dict[str, list[float]]] = {way: {str(n): [] for n in batches} for way in ("local", "ray")}
    ray.init(num_cpus=1, include_dashboard=False, log_to_driver=False, logging_level="error")
    try:
        for _ in range(rounds + 1):
            for way, found in seconds.items():
                for n in batches:
                    found[str(n)].append(measuring.timed(lambda n=n, way=way: _sweep(n, way)))
        null = _null_tasks(20 if options.quick else NULL_TASKS)
    finally:
        ray.shutdown()
    # The first round fills the cache of programs and starts the worker.
    seconds = {way: {n: each[1:] for n, each in found.items()} for way, found in seconds.items()}
    return {"batches": list(batches), "sweep_seconds": seconds, "null_task_seconds": null}


def _sweep(n: int, way: str) -> None:
    from rich.console import Console

    from subl_jax.app import running
    from subl_jax.engine.settings import Settings
    from subl_jax.fleet import Fleet
    from subl_jax.tracking.terminal import Progress

    settings = Settings(devices=1, lanes_a_batch=1, tracker="none")
    fleet = Fleet(resources={"CPU": 1}) if way == "ray" else None
    with tempfile.TemporaryDirectory() as workdir:
        running.run(
            students(n), workdir, settings=settings, fleet=fleet, progress=Progress(Console(quiet=True), plain=True)
        )


def _null_tasks(n: int) -> float:
    """Seconds of an empty task, one after the other."""
    import ray

    empty = ray.remote(num_cpus=1)(lambda: None)
    ray.get(empty.remote())
    return measuring.timed(lambda: [ray.get(empty.remote()) for _ in range(n)]) / n


def tables(data: Data) -> list[Table]:
    few, many = data["batches"]
    per_batch = {
        way: [(b - a) / (many - few) for a, b in zip(found[str(few)], found[str(many)], strict=True)]
        for way, found in data["sweep_seconds"].items()
    }
    more = [ray - local for ray, local in zip(per_batch["ray"], per_batch["local"], strict=True)]

    def shown(values: list[float]) -> str:
        return str(Spread.of([1000 * value for value in values]))

    rows = [
        ["a batch in one process", shown(per_batch["local"])],
        ["a batch as a task on Ray", shown(per_batch["ray"])],
        ["what Ray adds to a batch", shown(more)],
        ["an empty task of Ray's", measuring.number(1000 * data["null_task_seconds"])],
    ]
    note = "A batch here is one lane of two steps: all of it is bookkeeping (plan, inputs, store, tables)."
    return [Table("Overhead of Ray", ["part", "ms"], rows, note)]


if __name__ == "__main__":
    measuring.main(NAME, measuring.parser(__doc__).parse_args(), measure, tables)
