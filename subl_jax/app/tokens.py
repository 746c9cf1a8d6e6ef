"""Prints which tokens carry a trait, and how far detectors agree.

  tokens WORKDIR    a sweep with audited data, such as sweeps/tokens.py

Prints means over bases, and writes what they are of, a row per detector, trait
and base, to WORKDIR/tokens/: detectors.parquet, tokens.parquet,
positions.parquet, overlap.parquet.

Exit status: 0; 1 a file could not be written; 2 no such sweep is there.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import pandas as pd

from subl_jax.app.command import ended
from subl_jax.errors import InputError
from subl_jax.results import load
from subl_jax.results.formats import number
from subl_jax.results.token_tables import TOP, TokenTables, means, token_tables
from subl_jax.runtime import devices
from subl_jax.storage.atomic import write_parquet_atomic

if TYPE_CHECKING:
    from rich.table import Table

_SHOWN = 10  # tokens of a trait


def main(argv: Sequence[str]) -> int:
    """Runs one command line (without the program's name in front) and returns its exit status."""
    return ended(lambda: _tell(argv))


def _tell(argv: Sequence[str]) -> None:
    from rich.console import Console

    if len(argv) != 1 or argv[0].startswith("-"):
        given = " ".join(argv) or "nothing"
        raise InputError(f"tokens: expected one WORKDIR, as in tokens runs/tokens-full; got {given}")
    devices.prepare()
    results = load(argv[0])
    found = token_tables(results)
    folder = results.workdir / "tokens"
    for name in ("detectors", "tokens", "positions", "overlap"):
        write_parquet_atomic(folder / f"{name}.parquet", getattr(found, name))
    console = Console()
    for table in shown(found):
        console.print(table)
    console.print(f"each base and trait: {folder}")


def shown(found: TokenTables) -> "list[Table]":
    """What the terminal has: means over traits and bases, with 95 % t intervals."""
    tables = [_marked(found.detectors)]
    if not found.overlap.empty:
        tables.append(_overlap(found.overlap[~found.overlap["of_control"]]))
    tables.append(_positions(found.positions[~found.positions["of_control"]]))
    if not found.tokens.empty:
        tables += _tokens(found.tokens[~found.tokens["of_control"]])
    return tables


def _table(title: str, head: Sequence[str]) -> "Table":
    from rich.table import Table

    table = Table(title=title, title_justify="left")
    for i, name in enumerate(head):
        table.add_column(name, justify="right" if i else "left")
    return table


def _marked(detectors: pd.DataFrame) -> "Table":
    table = _table("share of tokens that score above 0", ["detector", "teachers' data", "control's data"])
    lines = means(detectors, "marked", ["detector", "of_control"]).set_index(["detector", "of_control"])
    for name in dict.fromkeys(detectors["detector"]):
        table.add_row(name, *(_with_ends(lines, (name, control)) for control in (False, True)))
    return table


def _overlap(overlap: pd.DataFrame) -> "Table":
    names = list(dict.fromkeys(overlap["detector"]))
    table = _table(
        f"of one detector's top {TOP:.0%}, the share in the other's (rank correlation of scores)", ["", *names]
    )
    lines = {
        value: means(overlap, value, ["detector", "other"]).set_index(["detector", "other"])["mean"]
        for value in ("both", "spearman")
    }
    for one in names:
        pairs = [(one, other) for other in names]
        table.add_row(one, *(f"{number(lines['both'].get(p))} ({number(lines['spearman'].get(p))})" for p in pairs))
    return table


def _positions(positions: pd.DataFrame) -> "Table":
    places = sorted(positions["position"].unique())
    table = _table(f"share of the tokens at each position that is in the top {TOP:.0%}", ["", *map(str, places)])
    lines = means(positions, "top", ["detector", "position"]).set_index(["detector", "position"])["mean"]
    for name in dict.fromkeys(positions["detector"]):
        table.add_row(name, *(number(lines.get((name, place))) for place in places))
    return table


def _tokens(tokens: pd.DataFrame) -> "list[Table]":
    """The likeliest of each trait to be in the top, a table per detector: how often, and in how many bases more than
    other tokens are."""
    tables = []
    for detector, rows in tokens.groupby("detector", sort=False):
        title = f"{detector}: tokens most often in the top {TOP:.0%}; in how many bases more often than others"
        table = _table(title, ["trait", *map(str, range(1, _SHOWN + 1))])
        for trait, of_trait in rows.groupby("trait", sort=False):
            bases = of_trait["base_seed"].nunique()
            found = of_trait.groupby("token").agg(
                top=("top", "mean"), bases=("top", lambda top: int((top > TOP).sum()))
            )
            best = found.sort_values("top", ascending=False).head(_SHOWN)
            table.add_row(trait, *(f"{x!r} {number(r.top)} {r.bases:.0f}/{bases}" for x, r in best.iterrows()))
        tables.append(table)
    return tables


def _with_ends(lines: pd.DataFrame, place: tuple[str, bool]) -> str:
    if place not in lines.index:
        return "–"
    line = lines.loc[place]
    return f"{number(line['mean'])} [{number(line['low'])}, {number(line['high'])}]"
