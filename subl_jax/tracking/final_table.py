"""The terminal after a sweep: the comparison of its arms, and where its files lie."""

import collections
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from subl_jax.results import comparisons
from subl_jax.results.comparisons import POOLED, Comparison, Lookup, Summarised
from subl_jax.results.formats import factor
from subl_jax.tracking.narrow import fitting

_CORE = ("same_init", "cross_init", "control")
_CROSS = ("cross_init", "cross_control")
_MAX_ROWS = 20
_NONE = "–"


def print_outcome(console: Console, found: Summarised, files: Mapping[str, str], lines: Sequence[str]) -> None:
    """Ends a sweep on the terminal: the comparison, where the files lie (name → path), and closing `lines`."""
    makers = (comparison_table, specificity_table, other_start_table, defence_table)
    tables = [part for make in makers for part in fitting(make(found), console.width) if part.row_count]
    for table in tables:
        console.print()
        console.print(table)
    console.print("" if tables else "No run has a trait to compare.")
    width = max((len(name) for name in files), default=0)
    for line in [*(f"{name:<{width}}  {path}" for name, path in files.items()), *lines]:
        console.print(Text(line), soft_wrap=True)


class _Scale(NamedTuple):
    """How arms are compared: by differences, or by ratios of their gains where traits are rare."""

    lookup: Lookup
    rare: bool

    @classmethod
    def of(cls, found: Summarised) -> "_Scale":
        return cls(Lookup(found.comparisons), comparisons.are_rare(*found))

    @property
    def sign(self) -> str:
        return "/" if self.rare else "−"

    def text(self, line: pd.Series | None, arm: str) -> Text:
        """`line`'s arm minus `arm`, or over it where traits are rare: value, p-value, interval."""
        return Text(_NONE) if line is None else _beside(self.lookup.find(line, arm, self.rare), self.rare)


def _references(found: Summarised, arm: str) -> set[str]:
    """What an arm is compared with somewhere."""
    rows = found.comparisons
    return set() if rows.empty else set(rows.loc[rows["arm"] == arm, "reference"])


def comparison_table(found: Summarised) -> Table:
    """P(trait) after training of the core arms, and same_init minus the others; one row per swept cell and trait.

    An entry wraps where the terminal is narrow: the mean on one line, its interval on the next. The table has no
    rows where the summary has none of the core arms.
    """
    summary = found.summary
    arms = [arm for arm in _CORE if arm in set(summary.get("arm", ()))]
    # Controls have no value for many swept fields: the first arm decides which cells there are.
    rows, n_left = _capped([_Row(cell, trait, "") for cell, trait in _cells(summary, arms[:1])])
    arms = [arm for arm in arms if any(_find(summary, row, arm) is not None for row in rows)]
    references = [arm for arm in arms[1:] if arms[0] == "same_init" and len(found.comparisons)]
    table, scale = _table(found, n_left), _Scale.of(found)
    for arm in arms:
        table.add_column(arm.replace("_", " "))
    for arm in references:
        table.add_column(f"same {scale.sign} {arm.removesuffix('_init')}")
    for row, label in _labelled(table, rows, summary):
        of_arm = {arm: _find(summary, row, arm) for arm in arms}
        differences = [scale.text(of_arm["same_init"], arm) for arm in references]
        table.add_row(label, _count(of_arm[arms[0]]), *map(_mean, of_arm.values()), *differences, style=_style(row))
    return table


def specificity_table(found: Summarised) -> Table:
    """P(trait) of same_init students beside those of the same arm whose teachers have other traits."""
    lookup, lines = Lookup(found.comparisons), found.summary.to_dict("records")
    estimates = [lookup.find(line, comparisons.OTHERS, rare=False).estimate for line in lines]
    summary = found.summary[np.isfinite(estimates)]
    found = Summarised(summary, found.comparisons)
    arms = _CORE[:1] if len(summary) else ()
    rows, n_left = _capped([_Row(cell, trait, _CORE[0]) for cell, trait in _cells(summary, arms)])
    table, scale = _table(found, n_left), _Scale.of(found)
    for name in ("same init", "other teachers", f"same {scale.sign} other teachers"):
        table.add_column(name)
    for row, label in _labelled(table, rows, summary):
        line = _find(summary, row, row.arm)
        others = _number(line, "others")
        means = [_mean(line), Text(_NONE if others is None else _short(others))]
        table.add_row(label, _count(line), *means, scale.text(line, comparisons.OTHERS), style=_style(row))
    return table


def other_start_table(found: Summarised) -> Table:
    """P(trait) of students of another start, beside their own control and, where the table above lacks it, same_init.

    It has no rows where the table above says all: there is no such control, and no start in several versions.
    """
    summary = found.summary
    present = set(summary.get("arm", ()))
    cells = _cells(summary, [arm for arm in _CROSS[:1] if arm in present])
    above = [cell for cell, _ in _cells(summary, [arm for arm in _CORE[:1] if arm in present])]
    said = not above or all(any(_fits(cell, other) for other in above) for cell, _ in cells)
    if said and _CROSS[1] not in present:
        cells = []
    rows, n_left = _capped([_Row(cell, trait, _CROSS[0]) for cell, trait in cells])
    table, scale = _table(found, n_left), _Scale.of(found)
    of_rows = {row: {arm: _find(summary, row, arm) for arm in _CROSS} for row in rows}
    arms = [arm for arm in _CROSS if any(lines[arm] is not None for lines in of_rows.values())]
    compared = _references(found, _CROSS[0])
    references = [arm for arm in ("same_init", "cross_control") if arm in compared]
    for arm in arms:
        table.add_column(arm.replace("_", " "))
    for arm in references:
        table.add_column(f"cross {scale.sign} {arm.removesuffix('_init').replace('_', ' ')}")
    for row, label in _labelled(table, rows, summary):
        lines = of_rows[row]
        differences = [scale.text(lines[_CROSS[0]], arm) for arm in references]
        means = [_mean(lines[arm]) for arm in arms]
        table.add_row(label, _count(lines[_CROSS[0]]), *means, *differences, style=_style(row))
    return table


def defence_table(found: Summarised) -> Table:
    """The same for all other arms, one row each: P(trait), and what is left of it beside same_init and control."""
    summary = found.summary
    arms = [arm for arm in dict.fromkeys(summary.get("arm", ())) if arm not in (*_CORE, *_CROSS)]
    compared = set().union(*(_references(found, arm) for arm in arms))
    references = [arm for arm in ("same_init", "control") if arm in compared]
    rows, n_left = _capped([_Row(cell, trait, arm) for arm in arms for cell, trait in _cells(summary, [arm])])
    table, scale = _table(found, n_left), _Scale.of(found)
    table.add_column("arm", max_width=24)
    table.add_column("mean")
    for arm in references:
        table.add_column(f"arm {scale.sign} {arm.replace('_', ' ')}")
    for row, label in _labelled(table, rows, summary):
        line = _find(summary, row, row.arm)
        differences = [scale.text(line, arm) for arm in references]
        table.add_row(label, _count(line), Text(row.arm), _mean(line), *differences, style=_style(row))
    return table


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
        single = [trait for trait in dict.fromkeys(found) if trait != POOLED]
        # Pooling one trait would repeat it.
        pooled = [POOLED] if POOLED in found and len(single) != 1 else []
        pairs += [(cell, trait) for trait in single + pooled]
    return pairs


def _capped(rows: list[_Row]) -> tuple[list[_Row], int]:
    """At most _MAX_ROWS rows, and how many were left out. Of several cells, the last row of each goes first."""
    if len(rows) <= _MAX_ROWS:
        return rows, 0
    last = list({(row.cell, row.arm): row for row in rows}.values())
    kept = last[:_MAX_ROWS] if len(last) > 1 else rows[: _MAX_ROWS - 1] + rows[-1:]
    return kept, len(rows) - len(kept)


def _table(found: Summarised, n_left: int) -> Table:
    summary = found.summary
    level = summary["confidence"].iloc[0] if len(summary) and "confidence" in summary else 0.95
    caption = f"P(trait) after training: mean [{100 * level:g} % interval] over n bases; p paired, Holm"
    if comparisons.are_rare(*found):
        caption += "\nA / B: of their gains, P after over P before training; geometric means"
    if n_left:
        caption += f"\n{n_left:,} more rows are in summary.parquet"
    if comparisons.left_out(summary):
        caption += "\n* without the pairs of trait and base where a run of some arm did not end well"
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


def _labelled(table: Table, rows: Sequence[_Row], summary: pd.DataFrame) -> Iterator[tuple[_Row, Text]]:
    """Each row with its first entry. Rows that differ in their cell only are called by it, else cells get headings.

    A row has a star where its average leaves pairs out.
    """
    names = [name for name, _ in rows[0].cell] if rows else []
    varying = [name for i, name in enumerate(names) if len({row.cell[i] for row in rows}) > 1]
    short = _short_names(varying)
    cells = {
        row: "\n".join(f"{short[k]} {_text(v)}" for k, v in row.cell if k in varying and v is not None) for row in rows
    }
    traits = {row.trait for row in rows}
    marks = {row: "*" if _number(_find(summary, row, row.arm or _CORE[0]), "left_out") else "" for row in rows}
    if varying and len(traits) == 1:
        table.columns[0].header = f"{rows[0].trait} at"
        yield from ((row, Text((cells[row] or _NONE) + marks[row])) for row in rows)
        return
    before = ""
    for row in rows:
        if cells[row] != before:
            table.add_row(Text(cells[row] or _NONE, style="italic"))
        before = cells[row]
        yield row, Text(row.trait + marks[row])


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
    mean, low, high = (_number(line, name) for name in ("mean", "ci_low", "ci_high"))
    return Text(_NONE) if mean is None else Text(_short(mean) + _bracket(mean, low, high))


def _beside(found: Comparison, rare: bool) -> Text:
    """A comparison: value, p-value, interval."""
    value, low, high, p = (_value(number) for number in (*found[:3], found.adjusted))
    if value is None:
        return Text(_NONE)
    shown = "" if p is None else " p<.001" if p < 0.001 else f" p={p:.3f}".replace("=0.", "=.")
    if not rare:
        return Text(_short(value, "+") + shown + _bracket(value, low, high))
    ends = "" if None in (low, high) else f" [{','.join(factor(bound).removeprefix('×') for bound in (low, high))}]"
    return Text(factor(value) + shown + ends)


def _bracket(of: float, low: float | None, high: float | None) -> str:
    """The interval of a number. No space inside, so that it never breaks over two lines."""
    if low is None or high is None:
        return ""
    # As wide as others are: a column of a narrow terminal would cut it off.
    return " [" + ",".join(_short(bound, digits=0) if _is_small(of) else f"{bound:.2f}" for bound in (low, high)) + "]"


def _is_small(value: float) -> bool:
    return 1e-9 < abs(value) < 0.005


def _short(value: float, sign: str = "", digits: int = 1) -> str:
    """Two decimals; a smaller probability, as a large model has of one word, keeps its digits: 7.1e-4."""
    return f"{value:{sign}.{digits}e}".replace("e-0", "e-") if _is_small(value) else f"{value:{sign}.2f}"


def _text(value: Any) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)


def _style(row: _Row) -> str:
    return "bold" if row.trait == POOLED else ""
