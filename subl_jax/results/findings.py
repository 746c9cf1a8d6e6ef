"""What a sweep says in words: the headline of each of its cells."""

from subl_jax.results import cells, comparisons
from subl_jax.results.comparisons import Summarised
from subl_jax.results.headline import headline
from subl_jax.results.load import Results


def findings(results: Results) -> list[tuple[str, str]]:
    """(what tells the cell from the others, "" where there is one; its headline) of every cell."""
    if results.runs.empty:
        return []
    grid = cells.Cells.of(results.runs)
    found = Summarised(results.summary, results.comparisons)
    rates = results.sweep.get("base_rate") or {}
    several = results.runs["world"].nunique() > 1
    said = []
    for cell in grid.cells:
        name = ": ".join(part for part in (cell["world"] if several else "", cells.cell_name(cell)) if part)
        said.append((name, headline(comparisons.in_cell(grid, found, cell), rates)))
    return said
