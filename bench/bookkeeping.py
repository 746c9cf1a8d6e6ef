"""Time and memory of a large sweep's bookkeeping: what a command does besides computing, from its start to the report.

The sweep is that of `planning.py`. Its workdir is filled with made-up results: every node stored in batches, as the
engine stores them, with whole curves and hardly any parameters. Then, each part in one fresh process and in the order
of a command that finds all of it computed: the specs and their keys, the store's index and the plan, with the check of
every file, and the tables, statistics and report that end every sweep.
"""

import argparse
import functools
import json
import pathlib
import shutil
import subprocess
import sys
import tempfile
from typing import Any

import measuring
import planning
from measuring import Data, Spread, Table

NAME = "bookkeeping"
ROUNDS = 3
BATCH = 256
POINTS = 11
PARTS = ("specs", "index", "plan", "runs", "curves", "datasets", "summary", "tables to disk", "report")


def fill(workdir: str, count: int) -> Data:
    """Stores results of every node of `count` students; gives seconds of `Store.put`."""
    import numpy as np

    from subl_jax import specs
    from subl_jax.engine.plan import make_plan
    from subl_jax.storage.store import Row, Store

    rng, store, seconds, stored = np.random.default_rng(0), Store(workdir), 0.0, 0
    for group in make_plan(list(planning.students_of(count)), ()).groups:
        for first in range(0, len(group.nodes), BATCH):
            nodes = group.nodes[first : first + BATCH]
            writes = group.stage.artefact is None
            info = {"drawn": 20_000, "kept": 16_384, "kept_fraction": 0.82, "why/separator": 3_616}
            rows = [Row(node.key, specs.to_json(node), info=info if writes else {}) for node in nodes]
            tree = {"params": rng.random((len(nodes), 16), np.float32)}
            curves = None if writes else _curves(rng, nodes[0].world, group.stage.name, len(nodes))
            steps = np.arange(POINTS) * 64
            put = functools.partial(store.put, group.stage.name, rows, tree, curves, steps if curves else None)
            seconds += measuring.timed(put)
            stored += len(nodes)
    return {"nodes": stored, "seconds": seconds}


def _curves(rng: Any, world: Any, stage: str, lanes: int) -> Any:
    """The metrics that a stage of the toy language records."""
    import numpy as np

    from subl_jax.engine import records

    record = {"loss": rng.random((lanes, POINTS), np.float32)}
    record["trait"] = rng.random((lanes, POINTS, len(world.traits)), np.float32)
    if stage == "distil":
        record |= {name: rng.random((lanes, POINTS), np.float32) for name in ("kl", "agreement", "cosine")}
    return records.named_metrics(world, record)


def keep_books(workdir: str, count: int) -> Data:
    """Seconds of each part, and bytes that the process had in memory at most."""
    from etils import epath

    from subl_jax import specs
    from subl_jax.engine.plan import plan_of
    from subl_jax.results import comparisons, report, specificity, tables
    from subl_jax.runtime import memory
    from subl_jax.storage.atomic import write_parquet_atomic
    from subl_jax.storage.store import Store

    parts = measuring.Parts()
    made = parts.made

    def to_disk() -> None:
        written = {name: made[name] for name in ("runs", "curves", "datasets")} | made["summary"]._asdict()
        for name, table in written.items():
            write_parquet_atomic(epath.Path(workdir) / f"{name}.parquet", table)

    def summarise() -> Any:
        made["runs"] = made["runs"].join(specificity.others(made["runs"], made["curves"]))
        return comparisons.summarise(made["runs"])

    def write_report() -> None:
        report.write_report(workdir, made["runs"], made["curves"], made["summary"], made["datasets"], {})

    parts.time("specs", lambda: specs.checked(planning.students_of(count)))
    parts.time("index", lambda: Store(workdir))
    parts.time("plan", lambda: plan_of(made["specs"], made["index"]))
    parts.time("runs", lambda: tables.runs_table("sweep", made["specs"], made["index"]))
    parts.time("curves", lambda: tables.curves_table(made["specs"], made["index"]))
    parts.time("datasets", lambda: tables.datasets_table(made["specs"], made["index"]))
    parts.time("summary", summarise)
    parts.time("tables to disk", to_disk)
    parts.time("report", write_report)
    assert not made["plan"].groups and len(made["runs"]) == count
    return {"seconds": parts.seconds, "bytes_peak": memory.peak(), "curve_rows": len(made["curves"])}


def measure(options: argparse.Namespace) -> Data:
    counts, rounds = (planning.COUNTS[:1], 1) if options.quick else (planning.COUNTS, ROUNDS)
    return {"sizes": [_size(count, rounds) for count in counts]}


def _size(count: int, rounds: int) -> Data:
    workdir = pathlib.Path(tempfile.mkdtemp(prefix="bookkeeping-"))
    try:
        filled = _apart("fill", workdir, count)
        on_disk = sum(path.stat().st_size for path in workdir.rglob("*") if path.is_file())
        books = [_apart("keep_books", workdir, count) for _ in range(rounds)]
    finally:
        shutil.rmtree(workdir)
    return {
        "students": count,
        "filled": filled,
        "bytes_on_disk": on_disk,
        "curve_rows": books[0]["curve_rows"],
        "seconds": {part: [each["seconds"][part] for each in books] for part in PARTS},
        "bytes_peak": [each["bytes_peak"] for each in books],
    }


def _apart(what: str, workdir: pathlib.Path, count: int) -> Data:
    """In a process of its own, whose memory is that of this part alone."""
    command = [sys.executable, __file__, "--part", what, "--workdir", str(workdir), "--students", str(count)]
    return json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


def tables(data: Data) -> list[Table]:
    rows = []
    for size in data["sizes"]:
        seconds = size["seconds"]
        whole = [sum(parts) for parts in zip(*seconds.values(), strict=True)]
        a_node = 1e3 * size["filled"]["seconds"] / size["filled"]["nodes"]
        rows.append(
            [f"{size['students']:,}", f"{size['curve_rows']:,}", str(Spread.of(whole))]
            + [measuring.number(Spread.of(seconds[part]).median) for part in PARTS]
            + [f"{max(size['bytes_peak']) / 2**20:,.0f}", f"{a_node:.2g}"]
        )
    columns = ["students", "rows of curves", "all, s", *PARTS, "peak, MiB", "storing, ms a node"]
    note = (
        "All parts in seconds, medians; the sum with its range. Peak: the whole process, Python and its libraries "
        "included. Storing is what a batch's write takes while the next batch computes."
    )
    return [Table("Bookkeeping", columns, rows, note)]


if __name__ == "__main__":
    parser = measuring.parser(__doc__)
    parser.add_argument("--part", choices=("fill", "keep_books"), help=argparse.SUPPRESS)
    parser.add_argument("--workdir", help=argparse.SUPPRESS)
    parser.add_argument("--students", type=int, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.part:
        print(json.dumps({"fill": fill, "keep_books": keep_books}[options.part](options.workdir, options.students)))
    else:
        measuring.main(NAME, options, measure, tables)
