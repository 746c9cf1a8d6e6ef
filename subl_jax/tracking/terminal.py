"""The terminal: a live display while a sweep runs (plain lines where there is no terminal), and its outcome after."""

import collections
import dataclasses
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple, Self

import numpy as np
import pandas as pd
from rich import box
from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from subl_jax.results import comparisons
from subl_jax.results.figures import factor

# --- while it runs ---


@dataclasses.dataclass
class _Group:
    """What is shown of the group that runs. Its rate is that of the work between `rate_from` and `rate_to`."""

    title: str
    lanes: int
    lane_steps: int
    layout: str
    began: float
    rate_from: float | None
    rate_to: float
    said: float
    done: int = 0
    unrated: int = 0
    compiling_since: float | None = None
    compiled: float = 0.0

    def rate(self) -> float | None:
        """Lane-steps per second, or None while nothing is known."""
        # Read once: the display asks from a thread of its own.
        since, done = self.rate_from, self.done - self.unrated
        seconds = 0.0 if since is None else self.rate_to - since
        return done / seconds if seconds > 0 and done > 0 else None

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
    """

    def __init__(
        self,
        console: Console | None = None,
        clock: Callable[[], float] = time.monotonic,
        plain: bool | None = None,
        every: float = 10.0,
    ):
        self._console = console or Console()
        self._clock = clock
        self._plain = plain if plain is not None else not self._console.is_terminal or self._console.is_dumb_terminal
        self._every = every
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

    def begin(self, stage: str, lanes: int, lane_steps: int, layout: str) -> None:
        """Opens a group. `lane_steps`: all the work in it, lanes × steps. `layout`: how it is spread, in words."""
        now = self._clock()
        self._n_begun += 1
        title = stage if self._n_groups is None else f"[{self._n_begun}/{self._n_groups}] {stage}"
        self._group = _Group(title, lanes, lane_steps, layout, began=now, rate_from=now, rate_to=now, said=now)
        if self._plain:
            self._print(f"{title}: {_plural(lanes, 'lane')}, {lane_steps:,} lane-steps, {layout}")
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

    def advance(self, lane_steps: int, restored: bool = False) -> None:
        """Counts work that is done. The first call after `compiling` ends it: call it with 0 when the program is ready.

        Work reported by that first call is counted as done, but not in the rate, since its time is not known; so is
        work that an earlier run has done, and that is `restored`.
        """
        if (group := self._group) is None:
            return
        now = self._clock()
        group.done += lane_steps
        group.unrated += lane_steps if restored else 0
        group.rate_to = now
        if group.rate_from is None:
            group.rate_from, group.unrated = now, group.done
        group.end_compiling(now)
        if self._plain and now - group.said >= self._every:
            group.said = now
            self._print(f"{group.title}: {self._numbers(group, now)}")

    def end(self, summary: str = "") -> None:
        """Closes the group with one line that stays."""
        if (group := self._group) is None:
            return
        now = self._clock()
        group.end_compiling(now)
        parts = [f"{_plural(group.lanes, 'lane')} in {_duration(now - group.began)}"]
        if group.compiled > 0:
            parts.append(f"compile {_duration(group.compiled)}")
        if (rate := group.rate()) is not None:
            parts.append(f"{_compact(rate)} lane-steps/s")
        self._group = None
        self._refresh()
        self._print(f"{group.title}: {', '.join(parts + [summary] if summary else parts)}")

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

    def _numbers(self, group: _Group, now: float) -> str:
        parts = [f"{100 * min(1.0, group.done / group.lane_steps) if group.lane_steps else 100:3.0f}%"]
        if group.compiling_since is not None:
            parts.append("compiling")
        elif (rate := group.rate()) is not None:
            parts += [f"{_compact(rate / max(1, group.lanes))} steps/s", f"{_compact(rate)} lane-steps/s"]
            left = (group.lane_steps - group.done) / rate - (now - group.rate_to)
            parts.append(f"ETA {_duration(max(0.0, left))}")
        return "  ".join([*parts, f"elapsed {_duration(now - self._began)}"])

    def _render(self) -> RenderableType:
        if (group := self._group) is None:
            return Text()
        now = self._clock()
        head = Text(no_wrap=True, overflow="ellipsis")
        head.append(group.title, style="bold")
        head.append(f"  {_plural(group.lanes, 'lane')}  {group.layout}")
        bar = ProgressBar(
            total=max(1, group.lane_steps),
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


# --- what came out ---

_CORE = ("same_init", "cross_init", "control")
_CROSS = ("cross_init", "cross_control")
_POOLED = "all"
_MAX_ROWS = 20
_NONE = "–"


def print_outcome(console: Console, summary: pd.DataFrame, files: Mapping[str, str], lines: Sequence[str]) -> None:
    """Ends a sweep on the terminal: the comparison, where the files lie (name → path), and closing `lines`."""
    tables = [comparison_table(summary), specificity_table(summary), other_start_table(summary), defence_table(summary)]
    tables = [table for table in tables if table.row_count]
    for table in tables:
        console.print()
        console.print(table)
    console.print("" if tables else "No run has a trait to compare.")
    width = max((len(name) for name in files), default=0)
    for line in [*(f"{name:<{width}}  {path}" for name, path in files.items()), *lines]:
        console.print(Text(line), soft_wrap=True)


def comparison_table(summary: pd.DataFrame) -> Table:
    """P(trait) after training of the core arms, and same_init minus the others; one row per swept cell and trait.

    An entry wraps where the terminal is narrow: the mean on one line, its interval on the next. The table has no
    rows where `summary` has none of the core arms.
    """
    arms = [arm for arm in _CORE if arm in set(summary.get("arm", ()))]
    # Controls have no value for many swept fields: the first arm decides which cells there are.
    rows, n_left = _capped([_Row(cell, trait, "") for cell, trait in _cells(summary, arms[:1])])
    arms = [arm for arm in arms if any(_find(summary, row, arm) is not None for row in rows)]
    references = [arm for arm in arms[1:] if arms[0] == "same_init" and f"diff_{arm}" in summary]
    table, (rare, sign) = _table(summary, n_left), _scale(summary)
    for arm in arms:
        table.add_column(arm.replace("_", " "))
    for arm in references:
        table.add_column(f"same {sign} {arm.removesuffix('_init')}")
    for row, label in _labelled(table, rows):
        of_arm = {arm: _find(summary, row, arm) for arm in arms}
        differences = [_difference(of_arm["same_init"], arm, rare) for arm in references]
        table.add_row(label, _count(of_arm[arms[0]]), *map(_mean, of_arm.values()), *differences, style=_style(row))
    return table


def specificity_table(summary: pd.DataFrame) -> Table:
    """P(trait) of same_init students beside those of the same arm whose teachers have other traits."""
    if "diff_others" in summary:
        summary = summary[summary["diff_others"].notna()]
    arms = _CORE[:1] if "diff_others" in summary else ()
    rows, n_left = _capped([_Row(cell, trait, _CORE[0]) for cell, trait in _cells(summary, arms)])
    table = _table(summary, n_left)
    rare, sign = _scale(summary)
    for name in ("same init", "other teachers", f"same {sign} other teachers"):
        table.add_column(name)
    for row, label in _labelled(table, rows):
        line = _find(summary, row, row.arm)
        others = _number(line, "others")
        means = [_mean(line), Text(_NONE if others is None else _short(others))]
        table.add_row(label, _count(line), *means, _difference(line, "others", rare), style=_style(row))
    return table


def other_start_table(summary: pd.DataFrame) -> Table:
    """P(trait) of students of another start, beside their own control and, where the table above lacks it, same_init.

    It has no rows where the table above says all: there is no such control, and no start in several versions.
    """
    present = set(summary.get("arm", ()))
    cells = _cells(summary, [arm for arm in _CROSS[:1] if arm in present])
    above = [cell for cell, _ in _cells(summary, [arm for arm in _CORE[:1] if arm in present])]
    said = not above or all(any(_fits(cell, other) for other in above) for cell, _ in cells)
    if said and _CROSS[1] not in present:
        cells = []
    rows, n_left = _capped([_Row(cell, trait, _CROSS[0]) for cell, trait in cells])
    table = _table(summary, n_left)
    found = {row: {arm: _find(summary, row, arm) for arm in _CROSS} for row in rows}
    arms = [arm for arm in _CROSS if any(lines[arm] is not None for lines in found.values())]
    references = [
        arm
        for arm in ("same_init", "cross_control")
        if any(_number(lines[_CROSS[0]], f"diff_{arm}") is not None for lines in found.values())
    ]
    rare, sign = _scale(summary)
    for arm in arms:
        table.add_column(arm.replace("_", " "))
    for arm in references:
        table.add_column(f"cross {sign} {arm.removesuffix('_init').replace('_', ' ')}")
    for row, label in _labelled(table, rows):
        lines = found[row]
        differences = [_difference(lines[_CROSS[0]], arm, rare) for arm in references]
        means = [_mean(lines[arm]) for arm in arms]
        table.add_row(label, _count(lines[_CROSS[0]]), *means, *differences, style=_style(row))
    return table


def defence_table(summary: pd.DataFrame) -> Table:
    """The same for all other arms, one row each: P(trait), and what is left of it beside same_init and control."""
    arms = [arm for arm in dict.fromkeys(summary.get("arm", ())) if arm not in (*_CORE, *_CROSS)]
    references = [arm for arm in ("same_init", "control") if f"diff_{arm}" in summary]
    rows, n_left = _capped([_Row(cell, trait, arm) for arm in arms for cell, trait in _cells(summary, [arm])])
    table, (rare, sign) = _table(summary, n_left), _scale(summary)
    table.add_column("arm", max_width=24)
    table.add_column("mean")
    for arm in references:
        table.add_column(f"arm {sign} {arm.replace('_', ' ')}")
    for row, label in _labelled(table, rows):
        line = _find(summary, row, row.arm)
        differences = [_difference(line, arm, rare) for arm in references]
        table.add_row(label, _count(line), Text(row.arm), _mean(line), *differences, style=_style(row))
    return table


def _scale(summary: pd.DataFrame) -> tuple[bool, str]:
    """Whether arms are compared by ratios of their gains, and the sign of the comparison."""
    rare = comparisons.are_rare(summary)
    return rare, "/" if rare else "−"


# A cell of the sweep: what tells it from the others, as (column, value).
_Cell = tuple[tuple[str, Any], ...]


class _Row(NamedTuple):
    cell: _Cell
    trait: str
    arm: str


def _cells(summary: pd.DataFrame, arms: Sequence[str]) -> list[tuple[_Cell, str]]:
    """The cells and traits in which `arms` occur, cell by cell; the pooled row comes last."""
    names = [name for name in ("sweep", "world") if name in summary and summary[name].nunique() > 1]
    names += [name for name in summary.columns if "." in name]
    traits: dict[_Cell, list[str]] = {}
    for _, line in summary[summary["arm"].isin(arms)].iterrows() if arms else ():
        cell = tuple((name, _value(line[name])) for name in names)
        traits.setdefault(cell, []).append(line["trait"])
    pairs = []
    for cell, found in traits.items():
        single = [trait for trait in dict.fromkeys(found) if trait != _POOLED]
        # Pooling one trait would repeat it.
        pooled = [_POOLED] if _POOLED in found and len(single) != 1 else []
        pairs += [(cell, trait) for trait in single + pooled]
    return pairs


def _capped(rows: list[_Row]) -> tuple[list[_Row], int]:
    """At most _MAX_ROWS rows, and how many were left out. Of several cells, the last row of each goes first."""
    if len(rows) <= _MAX_ROWS:
        return rows, 0
    last = list({(row.cell, row.arm): row for row in rows}.values())
    kept = last[:_MAX_ROWS] if len(last) > 1 else rows[: _MAX_ROWS - 1] + rows[-1:]
    return kept, len(rows) - len(kept)


def _table(summary: pd.DataFrame, n_left: int) -> Table:
    level = summary["confidence"].iloc[0] if len(summary) and "confidence" in summary else 0.95
    caption = f"P(trait) after training: mean [{100 * level:g} % interval] over n bases; p paired, Holm"
    if comparisons.are_rare(summary):
        caption += "\nA / B: of their gains, P after over P before training; geometric means"
    if n_left:
        caption += f"\n{n_left:,} more rows are in summary.parquet"
    table = Table(
        box=box.SIMPLE_HEAD,
        padding=(0, 1, 0, 0),
        pad_edge=False,
        show_edge=False,
        caption=Text(caption, style="dim"),
        caption_justify="left",
    )
    table.add_column("trait", max_width=24)
    table.add_column("n", justify="right", no_wrap=True)
    return table


def _labelled(table: Table, rows: Sequence[_Row]) -> Iterator[tuple[_Row, Text]]:
    """Each row with its first entry. Rows that differ in their cell only are called by it, else cells get headings."""
    names = [name for name, _ in rows[0].cell] if rows else []
    varying = [name for i, name in enumerate(names) if len({row.cell[i] for row in rows}) > 1]
    short = _short_names(varying)
    cells = {
        row: "\n".join(f"{short[k]} {_text(v)}" for k, v in row.cell if k in varying and v is not None) for row in rows
    }
    traits = {row.trait for row in rows}
    if varying and len(traits) == 1:
        table.columns[0].header = f"{rows[0].trait} at"
        yield from ((row, Text(cells[row] or _NONE)) for row in rows)
        return
    before = ""
    for row in rows:
        if cells[row] != before:
            table.add_row(Text(cells[row] or _NONE, style="italic"))
        before = cells[row]
        yield row, Text(row.trait)


def _short_names(names: Sequence[str]) -> dict[str, str]:
    """Dotted name → its shortest ending that no other has."""

    def endings(name: str) -> list[str]:
        parts = name.split(".")
        return [".".join(parts[i:]) for i in reversed(range(len(parts)))]

    shared = collections.Counter(ending for name in names for ending in endings(name))
    return {name: next((ending for ending in endings(name) if shared[ending] == 1), name) for name in names}


def _find(summary: pd.DataFrame, row: _Row, arm: str) -> pd.Series | None:
    """The summary row of `arm` in this cell, or in the closest one that leaves some of its fields free."""
    best, n_best = None, -1
    for _, line in summary[(summary["arm"] == arm) & (summary["trait"] == row.trait)].iterrows():
        cell = tuple((name, _value(line[name])) for name, _ in row.cell)
        n_equal = sum(own == value for own, value in zip(cell, row.cell, strict=True))
        if _fits(cell, row.cell) and n_equal > n_best:
            best, n_best = line, n_equal
    return best


def _fits(cell: _Cell, other: _Cell) -> bool:
    """Whether they are one cell but for fields that the first leaves free."""
    return all(own[1] is None or own == value for own, value in zip(cell, other, strict=True))


def _value(value: Any) -> Any:
    """A swept value that can be compared: None where it is missing, since NaN is not equal to itself."""
    if isinstance(value, list | np.ndarray):
        return tuple(value)
    return None if value is None or value is pd.NA or value != value else value


def _number(line: pd.Series | None, name: str) -> float | None:
    value = None if line is None else _value(line.get(name))
    return None if value is None else float(value)


def _count(line: pd.Series | None) -> str:
    n = _number(line, "n")
    return _NONE if n is None else f"{n:.0f}"


def _mean(line: pd.Series | None) -> Text:
    mean = _number(line, "mean")
    return Text(_NONE) if mean is None else Text(_short(mean) + _bracket(line, mean, "ci_low", "ci_high"))


def _difference(line: pd.Series | None, arm: str, rare: bool) -> Text:
    """`line`'s arm minus `arm`, or over it where traits are rare: value, p-value, interval."""
    names = comparisons.columns(arm, rare)
    value = _number(line, names.value)
    if value is None:
        return Text(_NONE)
    # The pooled row is one test and has nothing to be adjusted for.
    p = _number(line, names.p_holm)
    p = _number(line, names.p) if p is None else p
    shown = "" if p is None else " p<.001" if p < 0.001 else f" p={p:.3f}".replace("=0.", "=.")
    if not rare:
        return Text(_short(value, "+") + shown + _bracket(line, value, names.low, names.high))
    bounds = _number(line, names.low), _number(line, names.high)
    ends = "" if None in bounds else f" [{','.join(factor(bound).removeprefix('×') for bound in bounds)}]"
    return Text(factor(value) + shown + ends)


def _bracket(line: pd.Series | None, of: float, low: str, high: str) -> str:
    """The interval of a number. No space inside, so that it never breaks over two lines."""
    bounds = _number(line, low), _number(line, high)
    if None in bounds:
        return ""
    # As wide as others are: a column of a narrow terminal would cut it off.
    return " [" + ",".join(_short(bound, digits=0) if _is_small(of) else f"{bound:.2f}" for bound in bounds) + "]"


def _is_small(value: float) -> bool:
    return 1e-9 < abs(value) < 0.005


def _short(value: float, sign: str = "", digits: int = 1) -> str:
    """Two decimals; a smaller probability, as a large model has of one word, keeps its digits: 7.1e-4."""
    return f"{value:{sign}.{digits}e}".replace("e-0", "e-") if _is_small(value) else f"{value:{sign}.2f}"


def _text(value: Any) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)


def _style(row: _Row) -> str:
    return "bold" if row.trait == _POOLED else ""
