"""What a sweep says in words: the headline of each of its cells, p adjusted over them."""

from collections.abc import Mapping

from subl_jax.results import cells, comparisons
from subl_jax.results.comparisons import Summarised
from subl_jax.results.headline import adjusted, headline
from subl_jax.results.load import Results


def findings(results: Results) -> list[tuple[str, str]]:
    """(what tells the cell from the others, "" where there is one; its headline) of every cell."""
    if results.runs.empty:
        return []
    found = Summarised(results.summary, results.comparisons)
    return of_cells(cells.Cells.of(results.runs), found, results.sweep.get("base_rate") or {})


def of_cells(grid: cells.Cells, found: Summarised, base_rate: Mapping[str, float]) -> list[tuple[str, str]]:
    """As `findings`, in the order of the grid. base_rate: trait → chance, where it is known."""
    several_worlds = len({cell["world"] for cell in grid.cells}) > 1
    said = [comparisons.in_cell(grid, found, cell) for cell in grid.cells]
    said = adjusted(said) if len(said) > 1 else said
    return [
        (_title(cell, several_worlds), headline(of_cell, base_rate))
        for cell, of_cell in zip(grid.cells, said, strict=True)
    ]


def _title(cell: Mapping[str, object], several_worlds: bool) -> str:
    return ": ".join(part for part in (cell["world"] if several_worlds else "", cells.cell_name(cell)) if part)
