"""The page of a sweep: report.html, self-contained, and the figures beside it as PNG."""

import base64
import dataclasses
import warnings
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import pandas as pd
from etils import epath

from subl_jax.results import cells, comparisons, findings, report_tables
from subl_jax.results.comparisons import Summarised
from subl_jax.results.figures import Figure, Tables, style
from subl_jax.results.figures.style import arm_colours
from subl_jax.results.units import of_runs
from subl_jax.specs.metrics import OF_TRAINING, Metric
from subl_jax.storage.atomic import write_bytes_atomic
from subl_jax.storage.retrying import patiently

_MOST_SECTIONS = 6  # cells whose figures are on the page
_MOST_FOLDED = 42  # further ones whose figures are files beside it, a click away

_FILES = (
    ("runs.parquet", "one row per student, with every field of its lineage"),
    ("curves.parquet", "every metric of every run against student steps, long form"),
    ("summary.parquet", "means and their intervals, every setting, trait and arm"),
    ("comparisons.parquet", "arm against arm: differences and ratios, intervals and tests"),
    ("audits.parquet", "one row per audited dataset: what the audit says of it"),
    ("datasets.parquet", "one row per dataset: its teacher's P(trait), how much was drawn and kept"),
    ("datasets/", "what the teachers wrote, kept or why not"),
    ("figures/", "the figures of this page"),
    ("code/", "the sweep file, and what it imports from beside it"),
    ("sweep.json", "configuration, versions, timings"),
)


@dataclasses.dataclass(frozen=True)
class _Shown:
    """A figure on the page: `file` is its name in figures/, `data` its bytes in base64."""

    file: str
    caption: str
    data: str


def write_report(
    workdir: epath.PathLike,
    runs: pd.DataFrame,
    curves: pd.DataFrame,
    summarised: Summarised,
    datasets: pd.DataFrame,
    sweep: Mapping[str, Any],
    audits: pd.DataFrame | None = None,
    warn: Callable[[str], None] = warnings.warn,
) -> epath.Path:
    """Writes report.html and figures/*.png of a finished sweep.

    Args:
      workdir: the sweep's directory; made if it is not there.
      runs, curves, summarised, datasets, audits: the result tables, as in docs/results.md.
      sweep: the content of sweep.json. `base_rate`, trait → chance level, draws the chance lines; `metrics` says how
        curves are called and drawn.
      warn: takes a line for each figure that could not be drawn, and is left out.

    Returns:
      The path of report.html.
    """
    import jinja2

    workdir = epath.Path(workdir)
    style.import_matplotlib()
    # Figures of an earlier sweep in this directory are not of this one.
    patiently(lambda: (workdir / "figures").rmtree(missing_ok=True))
    patiently(lambda: (workdir / "figures").mkdir(parents=True, exist_ok=True))
    grid = cells.Cells.of(runs)
    chosen = _spread(len(grid.cells), _MOST_SECTIONS)
    others = [i for i in range(len(grid.cells)) if i not in chosen]
    folded = [others[i] for i in _spread(len(others), _MOST_FOLDED)]
    several_worlds = runs["world"].nunique() > 1
    metrics = {name: Metric(**fields) for name, fields in (sweep.get("metrics") or {}).items()}
    whole = Tables(
        runs=runs,
        curves=curves,
        summary=summarised.summary,
        comparisons=summarised.comparisons,
        datasets=datasets,
        base_rate=sweep.get("base_rate") or {},
        colours=arm_colours(runs),
        metrics=metrics or OF_TRAINING,
    )

    said = findings.of_cells(grid, Summarised(whole.summary, whole.comparisons), whole.base_rate)
    verdicts = [{"title": title, "headline": line} for title, line in said]
    of_cells = [figure for figure in Figure.found() if figure.scope == "cell"]
    sections = {}
    for which in (*chosen, *folded):
        of_cell = _in_cell(grid, whole, grid.cells[which])
        suffix = f"-{which + 1}" if len(grid.cells) > 1 else ""
        drawn = [_saved(workdir, figure, of_cell, warn, suffix) for figure in of_cells]
        sections[which] = {**verdicts[which], "figures": [shown for shown in drawn if shown]}
    over_all: dict[str, list[_Shown]] = {}
    for figure in Figure.found():
        if figure.scope == "sweep" and (shown := _saved(workdir, figure, whole, warn)):
            over_all.setdefault(figure.section, []).append(shown)
    theorem = (
        None
        if whole.steps.empty
        else {
            "headline": report_tables.moved_forward(whole.steps),
            "figures": over_all.get("theorem", []),
            "table": report_tables.theorem_table(whole.steps),
        }
    )
    page = jinja2.Environment(
        loader=jinja2.PackageLoader("subl_jax.results"), autoescape=True, trim_blocks=True, lstrip_blocks=True
    ).get_template("report.html")
    groups = [group for run in [*sweep.get("earlier", []), sweep] for group in run.get("groups") or []]
    machine = {name: sweep[name] for name in ("versions", "devices", "git", "command") if name in sweep}
    html = page.render(
        sweep=sweep,
        counts=report_tables.counts(runs),
        verdicts=verdicts,
        sections=[sections[which] for which in chosen],
        folded=[sections[which] for which in folded],
        left_out=len(grid.cells) - len(sections),
        overall=over_all.get("across", []),
        writers=report_tables.writers(runs, datasets),
        audits=None if audits is None or audits.empty else report_tables.audits_table(audits),
        theorem=theorem,
        rare=f"{comparisons.RARE:g}",
        table_data=report_tables.summary_table(summarised, grid.swept, several_worlds),
        unwell=report_tables.unwell(runs),
        timings=report_tables.timings(groups),
        settings=report_tables.pretty(sweep.get("config")),
        machine=report_tables.pretty(machine),
        files=_FILES,
        workdir=str(workdir),
    )
    path = workdir / "report.html"
    write_bytes_atomic(path, html.encode())
    return path


def _in_cell(grid: cells.Cells, whole: Tables, cell: dict[str, Any]) -> Tables:
    """The tables of one cell."""
    runs = grid.select(whole.runs, cell)
    lines, compared = comparisons.in_cell(grid, Summarised(whole.summary, whole.comparisons), cell)
    curves = of_runs(whole.curves, runs[["run_id"]])
    return dataclasses.replace(whole, runs=runs, curves=curves, summary=lines, comparisons=compared)


def fault(error: Exception) -> str:
    """An error in one line."""
    return " ".join(f"{type(error).__name__}: {error}".split())[:300]


def _saved(
    workdir: epath.Path, figure: Figure, tables: Tables, warn: Callable[[str], None], suffix: str = ""
) -> _Shown | None:
    """Draws a figure and writes its file; None where its data is missing, or where it cannot be drawn."""
    file = f"{figure.name}{suffix}.png"
    try:
        drawn = figure.draw(tables)
        if drawn is None:
            return None
        data = style.png(drawn)
        caption = figure.caption(tables)
    except Exception as error:  # of matplotlib, or of a figure in a user's own file
        warn(f"figures/{file} could not be drawn: {fault(error)}")
        return None
    write_bytes_atomic(workdir / "figures" / file, data)
    return _Shown(file, caption, base64.b64encode(data).decode())


def _spread(count: int, most: int) -> list[int]:
    """Indices of at most `most` of `count` things, first and last included, evenly apart."""
    return sorted(set(np.linspace(0, count - 1, min(count, most)).round().astype(int).tolist())) if count else []
