"""What every benchmark shares: options, interleaved timing, facts about the machine, results as JSON, tables.

A benchmark measures into a dict of raw data, and makes its tables from that dict alone, so that `summarise.py` can make
them again from the stored JSON.
"""

import argparse
import dataclasses
import datetime
import os
import pathlib
import platform
import socket
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from rich.console import Console
from rich.table import Table as RichTable

ROOT = pathlib.Path(__file__).resolve().parent.parent
RESULTS = ROOT / "bench" / "results"
# Quick runs only show that a script works; their numbers are kept away from the measured ones.
QUICK_RESULTS = ROOT / "build" / "bench"
# With more than this share of the cores taken by others when a benchmark starts, its numbers are marked.
_BUSY = 0.1

Data = dict[str, Any]


# --- tables ---


@dataclasses.dataclass(frozen=True)
class Table:
    """One table, for the terminal and for the documentation. `note` says what a reader needs to know to read it."""

    title: str
    columns: Sequence[str]
    rows: Sequence[Sequence[str]]
    note: str = ""

    def rich(self) -> RichTable:
        table = RichTable(title=self.title, title_justify="left", caption=self.note or None, caption_justify="left")
        for i, column in enumerate(self.columns):
            table.add_column(column, justify="right" if i else "left")
        for row in self.rows:
            table.add_row(*row)
        return table

    def markdown(self) -> str:
        lines = [f"**{self.title}**", "", _row(self.columns), _row(["---", *["---:"] * (len(self.columns) - 1)])]
        lines += [_row(row) for row in self.rows]
        return "\n".join([*lines, *(["", self.note] if self.note else [])])


def _row(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cells) + " |"


# --- timing ---


@dataclasses.dataclass(frozen=True)
class Spread:
    """The median of some values with the smallest and the largest."""

    median: float
    low: float
    high: float

    @classmethod
    def of(cls, values: Sequence[float]) -> "Spread":
        return cls(statistics.median(values), min(values), max(values))

    def __str__(self) -> str:
        return f"{number(self.median)} ({number(self.low)}–{number(self.high)})"


def number(value: float) -> str:
    """Three significant digits, in full where that is readable."""
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"


def interleaved(contestants: Mapping[str, Callable[[], object]], rounds: int) -> dict[str, list[float]]:
    """Seconds of each call, `rounds` times A B C A B C …, so that what changes on the machine touches all alike.

    A contestant returns when its work is done. Each runs once before the first round, untimed.
    """
    for run in contestants.values():
        run()
    seconds: dict[str, list[float]] = {name: [] for name in contestants}
    for _ in range(rounds):
        for name, run in contestants.items():
            seconds[name].append(timed(run))
    return seconds


def timed(run: Callable[[], object]) -> float:
    began = time.perf_counter()
    run()
    return time.perf_counter() - began


class Parts:
    """The parts of one run, in order: the seconds that each took, and what it made for those after it."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self.made: dict[str, Any] = {}

    def time(self, name: str, run: Callable[[], Any]) -> None:
        began = time.perf_counter()
        self.made[name] = run()
        self.seconds[name] = time.perf_counter() - began


def steps_for(run: Callable[[int], object], seconds: float, few: int) -> int:
    """How many steps `run(steps)` does in about `seconds`, at least `few`."""
    run(few)
    return max(few, round(seconds / timed(lambda: run(few)) * few))


def rates(seconds: Sequence[float], work: float) -> list[float]:
    """Work per second of every timing."""
    return [work / each for each in seconds]


def ratio(ours: Sequence[float], theirs: Sequence[float]) -> Spread:
    """The ratio of the medians of two series of rates, with the range of the ratios of the single rounds."""
    single = [a / b for a, b in zip(ours, theirs, strict=True)]
    return Spread(statistics.median(ours) / statistics.median(theirs), min(single), max(single))


# --- the machine ---


def machine() -> Data:
    """The devices, versions and git revision of `running.machine`, and what else bears on a timing."""
    from subl_jax.app import running

    facts = running.machine()
    facts["versions"] |= running.installed("torch", "transformers", "peft", "scipy", "pandas")
    pages = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return {**facts, "cpu": _cpu(), "cores": cores(), "memory_gib": round(pages / 2**30, 1), "os": platform.platform()}


def cores() -> int:
    """The cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def free_port() -> int:
    """A port of this machine that nobody listens at."""
    with socket.socket() as free:
        free.bind(("localhost", 0))
        return free.getsockname()[1]


def cores_taken(seconds: float = 1.0) -> float | None:
    """How many cores other processes keep busy, watched for some seconds; None where the system does not tell."""

    def busy() -> int:
        times = [int(value) for value in path.read_text().split("\n", 1)[0].split()[1:9]]
        return sum(times) - times[3] - times[4]  # all but idle and waiting for disks

    path = pathlib.Path("/proc/stat")
    if not path.is_file():
        return None
    before = busy()
    time.sleep(seconds)
    return (busy() - before) / os.sysconf("SC_CLK_TCK") / seconds


def _cpu() -> str:
    path = pathlib.Path("/proc/cpuinfo")
    lines = path.read_text().splitlines() if path.is_file() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


# --- a benchmark from its command line to its results ---


def parser(description: str | None) -> argparse.ArgumentParser:
    made = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    made.add_argument("--quick", action="store_true", help="only show that it works: seconds, and no number of use")
    return made


def main(
    name: str,
    options: argparse.Namespace,
    measure: Callable[[argparse.Namespace], Data],
    tables: Callable[[Data], list[Table]],
) -> None:
    """Measures, stores `<name>.json`, and prints the tables."""
    from subl_jax.storage.atomic import write_json_atomic

    date, taken, began = datetime.datetime.now(datetime.UTC), cores_taken(), time.perf_counter()
    measured = measure(options)
    data = {
        "benchmark": name,
        "quick": options.quick,
        "date": date.isoformat(timespec="seconds"),
        "seconds": time.perf_counter() - began,
        "cores_taken_before": taken,
        "machine": machine(),
        **measured,
    }
    path = (QUICK_RESULTS if options.quick else RESULTS) / f"{name}.json"
    write_json_atomic(path, data)
    console = Console()
    if not console.is_terminal:
        console = Console(width=160)
    for table in tables(data):
        console.print(table.rich())
    console.print(f"{circumstances(data)} {path}", soft_wrap=True)


def circumstances(data: Data) -> str:
    """When and on what the numbers were taken, and whether they are to be believed."""
    facts = data["machine"]
    kinds = sorted(set(facts["devices"]))
    versions = " ".join(f"{name} {facts['versions'][name]}" for name in ("jax", "torch") if name in facts["versions"])
    line = f"{data['date'][:10]}, {facts['cpu']}, {facts['cores']} cores, {', '.join(kinds)}, {versions}, "
    line += f"{data['seconds']:.0f} s in all."
    if data["quick"]:
        line += " Quick run: no number here is of use."
    taken = data["cores_taken_before"]
    if taken is not None and taken > _BUSY * facts["cores"]:
        line += f" Taken on a busy machine: others kept {taken:.1f} cores busy before it began."
    return line
