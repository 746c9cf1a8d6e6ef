"""Runs the parts of `accelerator_parts.py` one after the other within some minutes, and prints one table of results.

Each part is a process of its own, so that it finds all the device's memory, and has a share of the time that is left:
what one part does not use goes to those after it, and one that is too slow is ended. A part writes its JSON after every
single measurement, and starts with what is there.
"""

import argparse
import json
import os
import pathlib
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from rich.console import Console
from rich.table import Table

ROOT = pathlib.Path(__file__).resolve().parent.parent
RESULTS = ROOT / "bench" / "results" / "accelerator"
# What a part has after it is told to end, and what the table at the end takes; in seconds.
_GRACE, _RESERVE = 5.0, 5.0
# A part with less would hardly start.
_LEAST = 15.0


class Part(NamedTuple):
    """share: of the time, in seconds of nine minutes."""

    name: str
    share: float


# In this order: what is to be known first comes first.
PARTS = (
    Part("toy_32", 120),
    Part("digits", 60),
    Part("adapters_1.5B", 80),
    Part("adapters_7B", 90),
    Part("writing_1.5B", 50),
    Part("toy_128", 60),
    Part("chat", 70),
)


def stored(path: pathlib.Path) -> dict[str, Any]:
    """What a part has written so far; empty where there is nothing whole."""
    try:
        return json.loads(path.read_text())
    except (FileNotFoundError, ValueError):
        return {}


def allowance(part: Part, pending: Sequence[Part], left: float) -> float:
    """Seconds of `left` for `part`, the first of those that are pending."""
    return left * part.share / sum(each.share for each in pending)


def run(
    parts: Sequence[Part],
    folder: pathlib.Path,
    seconds: float,
    command: Callable[[Part, pathlib.Path, float], Sequence[str]],
    say: Callable[[str], None] = print,
    clock: Callable[[], float] = time.monotonic,
) -> None:
    """Runs what is not there yet. command: (part, its file, its seconds) → the process that measures it."""
    end = clock() + seconds - _RESERVE
    pending = [part for part in parts if not stored(folder / f"{part.name}.json").get("whole")]
    for part in parts:
        if part not in pending:
            say(f"{part.name}: is there")
    while pending:
        part, path = pending[0], folder / f"{pending[0].name}.json"
        allowed = allowance(part, pending, end - clock())
        pending = pending[1:]
        if allowed < min(_LEAST, part.share / 2):
            say(f"{part.name}: no time left")
            continue
        say(f"{part.name}: {allowed:.0f} s at most")
        began, reason = clock(), _ended(command(part, path, allowed), allowed)
        whole = "whole" if stored(path).get("whole") else "goes on next time" if path.exists() else "nothing measured"
        say(f"{part.name}: {whole} after {clock() - began:.0f} s{f' ({reason})' if reason else ''}")


def _ended(command: Sequence[str], seconds: float) -> str:
    """Runs a process for so long at most, with all that it starts; says why it did not end well."""
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, start_new_session=True)
    reason = ""
    for patience, number in ((seconds - _GRACE, signal.SIGTERM), (_GRACE, signal.SIGKILL)):
        try:
            _, error = process.communicate(timeout=max(patience, 0.1))
            break
        except subprocess.TimeoutExpired:
            reason = "its time was up"
            os.killpg(process.pid, number)
    else:
        _, error = process.communicate()
    lines = [line for line in error.splitlines() if line.strip()]
    return reason or (lines[-1][:200] if process.returncode and lines else "")


def summary(parts: Sequence[Part], folder: pathlib.Path) -> Table:
    """All that is stored, of this run and of earlier ones."""
    table = Table(title="On the accelerator", title_justify="left")
    for column in ("part", "what", "measured", "aim", "taken"):
        table.add_column(column, justify="left" if column in ("part", "what") else "right")
    for part in parts:
        data = stored(folder / f"{part.name}.json")
        taken = " ".join([data.get("date", "")[:10], data.get("device", ""), "" if data.get("whole") else "(in part)"])
        for what, measured, aim in data.get("lines", ()) or [("nothing yet", "–", "")]:
            table.add_row(part.name, what, measured, aim, taken.strip() if data else "–")
    return table


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    names = [part.name for part in PARTS]
    parser.add_argument("--minutes", type=float, default=9.0)
    parser.add_argument("--out", type=pathlib.Path, default=pathlib.Path(os.environ.get("OUT") or RESULTS))
    parser.add_argument("--model", default="smollm2", help="of the chat part, as --config.model of sweeps/chat.py")
    parser.add_argument("--only", nargs="+", default=names, choices=names, metavar="PART")
    parser.add_argument("--tiny", action="store_true", help="only show that it works, on any device")
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)

    def command(part: Part, path: pathlib.Path, seconds: float) -> list[str]:
        words = [sys.executable, str(ROOT / "bench" / "accelerator_parts.py"), part.name, str(path)]
        return [*words, f"--seconds={seconds}", f"--model={options.model}", *["--tiny"] * options.tiny]

    parts = [part for part in PARTS if part.name in options.only]
    run(parts, options.out, 60 * options.minutes, command, say=lambda line: print(line, flush=True))
    console = Console()
    (console if console.is_terminal else Console(width=140)).print(summary(PARTS, options.out))


if __name__ == "__main__":
    main()
