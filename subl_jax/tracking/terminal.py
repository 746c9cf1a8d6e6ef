"""The terminal while a sweep runs: a live display, or plain lines where there is no terminal."""

import dataclasses
import time
from collections.abc import Callable
from typing import Self

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from subl_jax.engine.observers import GroupInfo


@dataclasses.dataclass
class _Group:
    """What is shown of the group that runs. Its rate is that of the work between `rate_from` and `rate_to`."""

    title: str
    info: GroupInfo
    began: float
    rate_from: float | None
    rate_to: float
    said: float
    done: int = 0
    unrated: int = 0
    compiling_since: float | None = None
    compiled: float = 0.0

    def rate(self) -> float | None:
        """Work per second, over all lanes, or None while nothing is known."""
        # Read once: the display asks from a thread of its own.
        since, done = self.rate_from, self.done - self.unrated
        seconds = 0.0 if since is None else self.rate_to - since
        return done / seconds if seconds > 0 and done > 0 else None

    def described(self) -> str:
        """Such as "60 students × 400 steps"."""
        made = _plural(self.info.count, self.info.thing)
        each = self.info.work // max(1, self.info.count)
        return f"{made} × {each:,} {self.info.unit}" if each and self.info.unit else made

    def rate_in_words(self) -> list[str]:
        if (rate := self.rate()) is None or not self.info.unit:
            return []
        return [f"{_compact(rate)} {self.info.unit}/s" + (" together" if self.info.count > 1 else "")]

    def end_compiling(self, now: float) -> None:
        if self.compiling_since is not None:
            self.compiled += now - self.compiling_since
            self.compiling_since = None


class Progress:
    """Shows which group of a sweep runs, how fast, and when it will be done. A context manager.

    Args:
      console: where to write; standard output if not given.
      clock: seconds that only grow.
      plain: lines instead of a live display; by default wherever the console is no terminal.
      every: seconds between two plain lines of one group.
      verbose: also how a group is spread over devices, and how near it comes to what they can do.
    """

    def __init__(
        self,
        console: Console | None = None,
        clock: Callable[[], float] = time.monotonic,
        plain: bool | None = None,
        every: float = 10.0,
        verbose: bool = False,
    ):
        self._console = console or Console()
        self._clock = clock
        self._plain = plain if plain is not None else not self._console.is_terminal or self._console.is_dumb_terminal
        self._every = every
        self._verbose = verbose
        self._began = clock()
        self._n_groups: int | None = None
        self._n_begun = 0
        self._group: _Group | None = None
        self._live: Live | None = None

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def start(self) -> None:
        self._began = self._clock()
        if not self._plain and self._live is None:
            self._live = Live(get_renderable=self._render, console=self._console, transient=True, refresh_per_second=4)
            self._live.start()

    def stop(self) -> None:
        """Takes the live display away and gives the terminal back."""
        if self._live is not None:
            self._live.stop()
            self._live = None

    def plan(self, n_groups: int) -> None:
        """From here on, groups are shown as 1/n, 2/n, …"""
        self._n_groups = n_groups
        self._n_begun = 0

    def begin(self, group: GroupInfo) -> None:
        """Opens a group."""
        now = self._clock()
        self._n_begun += 1
        title = group.stage if self._n_groups is None else f"[{self._n_begun}/{self._n_groups}] {group.stage}"
        self._group = _Group(title, group, began=now, rate_from=now, rate_to=now, said=now)
        if self._plain:
            self._print(f"{title}: {', '.join([self._group.described(), *self._layout(group)])}")
        self._refresh()

    def compiling(self) -> None:
        """The group compiles from here to its next `advance`; that time is kept out of the rate."""
        if (group := self._group) is None or group.compiling_since is not None:
            return
        group.compiling_since = self._clock()
        group.rate_from = None
        if self._plain:
            self._print(f"{group.title}: compiling")
        self._refresh()

    def advance(self, work: int, restored: bool = False) -> None:
        """Counts work that is done. The first call after `compiling` ends it: call it with 0 when the program is ready.

        Work reported by that first call is counted as done, but not in the rate, since its time is not known; so is
        work that an earlier run has done, and that is `restored`.
        """
        if (group := self._group) is None:
            return
        now = self._clock()
        group.done += work
        group.unrated += work if restored else 0
        group.rate_to = now
        if group.rate_from is None:
            group.rate_from, group.unrated = now, group.done
        group.end_compiling(now)
        if self._plain and now - group.said >= self._every:
            group.said = now
            self._print(f"{group.title}: {self._numbers(group, now)}")

    def end(self, summary: str = "", details: str = "") -> None:
        """Closes the group with one line that stays. `details`: for those who ask for them."""
        if (group := self._group) is None:
            return
        now = self._clock()
        group.end_compiling(now)
        parts = [f"{_plural(group.info.count, group.info.thing)} in {_duration(now - group.began)}"]
        if group.compiled > 0:
            parts.append(f"compile {_duration(group.compiled)}")
        parts += [*group.rate_in_words(), summary, *([details] if self._verbose else [])]
        self._group = None
        self._refresh()
        self._print(f"{group.title}: {', '.join(part for part in parts if part)}")

    def say(self, text: str) -> None:
        """One line above the live display. May be called from any thread."""
        self._print(text)

    def warn(self, text: str) -> None:
        """One line that stands out. May be called from any thread."""
        self._print(f"warning: {text}", style="yellow")

    def _print(self, text: str, style: str = "") -> None:
        # Soft wrapping leaves long lines to the terminal, so that a path in them can be copied.
        self._console.print(Text(text, style=style), soft_wrap=True)

    def _refresh(self) -> None:
        if self._live is not None:
            self._live.refresh()

    def _layout(self, group: GroupInfo) -> list[str]:
        return [group.layout] if self._verbose and group.layout else []

    def _numbers(self, group: _Group, now: float) -> str:
        work = group.info.work
        parts = [f"{100 * min(1.0, group.done / work) if work else 100:3.0f}%"]
        if group.compiling_since is not None:
            parts.append("compiling")
        elif (rate := group.rate()) is not None:
            parts += group.rate_in_words()
            left = (work - group.done) / rate - (now - group.rate_to)
            parts.append(f"ETA {_duration(max(0.0, left))}")
        return "  ".join([*parts, f"elapsed {_duration(now - self._began)}"])

    def _render(self) -> RenderableType:
        if (group := self._group) is None:
            return Text()
        now = self._clock()
        head = Text(no_wrap=True, overflow="ellipsis")
        head.append(group.title, style="bold")
        head.append("  ".join(["", group.described(), *self._layout(group.info)]))
        bar = ProgressBar(
            total=max(1, group.info.work),
            completed=group.done,
            pulse=group.compiling_since is not None,
            animation_time=now,
        )
        line = Table.grid(padding=(0, 1, 0, 0), expand=True)
        line.add_column(ratio=1)
        line.add_column(no_wrap=True)
        line.add_row(bar, Text(self._numbers(group, now)))
        return Group(head, line)


def _plural(n: int, noun: str) -> str:
    return f"{n:,} {noun}" if n == 1 else f"{n:,} {noun}s"


def _duration(seconds: float) -> str:
    """Below a minute in seconds, else as m:ss or h:mm:ss."""
    if seconds < 9.95:
        return f"{seconds:.1f} s"
    seconds = round(seconds)
    if seconds < 60:
        return f"{seconds} s"
    minutes, seconds = divmod(seconds, 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{seconds:02}" if hours else f"{minutes}:{seconds:02}"


def _compact(value: float) -> str:
    """Three digits at most: 0.12, 3.4, 56, 789, 1.2k, 34k, 5.6M."""
    for size, unit in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        # 999.5 would be rounded to 1000 of the smaller unit.
        if value >= 0.9995 * size:
            value /= size
            return f"{value:.1f}{unit}" if value < 9.95 else f"{value:.0f}{unit}"
    if value < 0.995:
        return f"{value:.2f}"
    return f"{value:.1f}" if value < 9.95 else f"{value:.0f}"
