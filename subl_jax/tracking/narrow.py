"""Tables on narrow terminals: entries wrap where they may, and columns for which there is no room stand below."""

from collections.abc import Iterator, Sequence

from rich.table import Column, Table

_LABELS = 2  # the first columns, which every part repeats
_GAP = 2  # between two columns


def fitting(table: Table, width: int) -> list[Table]:
    """The table in `width` columns of a terminal: whole, or in parts with some of its columns each.

    A number stays beside its p-value, and an interval in one piece. The last part has the caption.
    """
    labels, rest = table.columns[:_LABELS], table.columns[_LABELS:]
    parts = list(_parts(labels, rest, width))
    return [_part(table, [*labels, *columns], width, last=columns is parts[-1]) for columns in parts] or [table]


def _parts(labels: Sequence[Column], columns: Sequence[Column], width: int) -> Iterator[list[Column]]:
    """As many columns as fit beside the labels, time after time; one where not even that does."""
    chosen: list[Column] = []
    for column in columns:
        if chosen and _total(map(_least, [*labels, *chosen, column])) > width:
            yield chosen
            chosen = []
        chosen.append(column)
    if chosen:
        yield chosen


def _part(table: Table, columns: Sequence[Column], width: int, last: bool) -> Table:
    part = Table(
        box=table.box,
        padding=table.padding,
        pad_edge=table.pad_edge,
        show_edge=table.show_edge,
        caption=table.caption if last else None,
        caption_justify=table.caption_justify,
    )
    for column, own in zip(columns, _widths(columns, width), strict=True):
        part.add_column(column.header, justify=column.justify, overflow="fold", width=own)
    for row, *cells in zip(table.rows, *(column.cells for column in columns), strict=True):
        part.add_row(*cells, style=row.style)
    return part


def _widths(columns: Sequence[Column], width: int) -> list[int]:
    """What each column needs, and those that are nearest to it the room for their entries in one line."""
    widths, whole = [_least(column) for column in columns], [_whole(column) for column in columns]
    for i in sorted(range(len(columns)), key=lambda i: whole[i] - widths[i]):
        room = width - _total(widths)
        if whole[i] - widths[i] <= room:
            widths[i] = whole[i]
    return widths


def _total(widths: Iterator[int] | Sequence[int]) -> int:
    widths = list(widths)
    return sum(widths) + _GAP * (len(widths) - 1)


def _whole(column: Column) -> int:
    lines = [line for text in (column.header, *column.cells) for line in str(text).splitlines()]
    return min(max(map(len, lines), default=0), column.max_width or 1000)


def _least(column: Column) -> int:
    """The longest piece that does not break: a word of a head or a label, a number with its p-value, an interval."""
    pieces = str(column.header).split()
    for cell in map(str, column.cells):
        pieces += cell.replace(" [", "\n[").splitlines() if "[" in cell else cell.split()
    return min(max(map(len, pieces), default=0), column.max_width or 1000)
