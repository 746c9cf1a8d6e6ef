"""The page of a sweep: report.html, self-contained, and the figures beside it as PNG."""

import base64
import dataclasses
import io
import json
from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from etils import epath

from subl_jax.results import comparisons, figures, one_step
from subl_jax.storage.atomic import write_bytes_atomic
from subl_jax.storage.retrying import patiently

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_MOST_SECTIONS = 6  # cells with figures of their own
_MOST_LINES = 150  # rows of a table on the page
_FEW_BASES = 5  # below this, even a clear result is called provisional

_FILES = (
    ("runs.parquet", "one row per student, with every field of its lineage"),
    ("curves.parquet", "every metric of every run against student steps, long form"),
    ("summary.parquet", "means, intervals and tests, every setting and trait"),
    ("datasets.parquet", "one row per dataset: its teacher's P(trait), how much was drawn and kept"),
    ("datasets/", "what the teachers wrote, kept or why not"),
    ("figures/", "the figures of this page"),
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
    summary: pd.DataFrame,
    datasets: pd.DataFrame,
    sweep: Mapping[str, Any],
) -> epath.Path:
    """Writes report.html and figures/*.png of a finished sweep.

    Args:
      workdir: the sweep's directory; made if it is not there.
      runs, curves, summary, datasets: the result tables, as in docs/results.md.
      sweep: the content of sweep.json. `base_rate`, trait → chance level, draws the chance lines.

    Returns:
      The path of report.html.
    """
    import jinja2

    workdir = epath.Path(workdir)
    # Figures of an earlier sweep in this directory are not of this one.
    patiently(lambda: (workdir / "figures").rmtree(missing_ok=True))
    patiently(lambda: (workdir / "figures").mkdir(parents=True, exist_ok=True))
    grid = comparisons.Cells.of(runs)
    chosen = [grid.cells[i] for i in _spread(len(grid.cells), _MOST_SECTIONS)]
    base_rate = sweep.get("base_rate") or {}
    several_worlds = runs["world"].nunique() > 1

    steps = one_step.table(runs, curves)
    sections = []
    for i, cell in enumerate(chosen):
        suffix = f"-{i + 1}" if len(chosen) > 1 else ""
        in_cell = grid.select(runs, cell)
        own = comparisons.of_runs(curves, in_cell[["run_id"]])
        rows = grid.compared(summary, cell)
        sections.append(
            {
                "title": section_title(cell, several_worlds),
                "headline": headline(rows, base_rate),
                "figures": _cell_figures(workdir, suffix, in_cell, own, rows, base_rate, figures.arm_colours(runs)),
            }
        )
    page = jinja2.Environment(
        loader=jinja2.PackageLoader("subl_jax.results"), autoescape=True, trim_blocks=True, lstrip_blocks=True
    ).get_template("report.html")
    html = page.render(
        sweep=sweep,
        counts=_counts(runs),
        sections=sections,
        left_out=len(grid.cells) - len(chosen),
        overall=_overall_figures(workdir, runs, datasets, summary, base_rate),
        writers=_writers(runs, datasets),
        theorem=_theorem(workdir, steps, figures.arm_colours(runs)),
        rare=f"{comparisons.RARE:g}",
        table_data=_summary_table(summary, grid.swept, several_worlds),
        unwell=_unwell(runs),
        timings=_timings([group for run in [*sweep.get("earlier", []), sweep] for group in run.get("groups") or []]),
        settings=_pretty(sweep.get("config")),
        machine=_pretty({name: sweep[name] for name in ("versions", "devices", "git", "command") if name in sweep}),
        files=_FILES,
        workdir=str(workdir),
    )
    path = workdir / "report.html"
    write_bytes_atomic(path, html.encode())
    return path


def _spread(count: int, most: int) -> list[int]:
    """Indices of at most `most` of `count` things, first and last included, evenly apart."""
    return sorted(set(np.linspace(0, count - 1, min(count, most)).round().astype(int).tolist())) if count else []


def section_title(cell: Mapping[str, Any], several_worlds: bool) -> str:
    name = comparisons.cell_name(cell)
    return ": ".join(part for part in (cell["world"] if several_worlds else "", name) if part)


# --- what the numbers say ---


def headline(summary: pd.DataFrame, base_rate: Mapping[str, float]) -> str:
    """What the pooled rows of one cell say, in words that claim no more than the intervals do.

    Rare traits are compared by their gains, P after training over P before.
    """
    rare = comparisons.are_rare(summary)
    pooled = summary[(summary["trait"] == comparisons.POOLED)]
    finished = pooled[pooled["mean"].notna()]
    if finished.empty:
        return f"No result: none of the {int(pooled['n_runs'].sum())} runs ended well."
    ends = {row["arm"]: row for row in finished.drop_duplicates("arm").to_dict("records")}
    chance = _chance(summary, base_rate)
    if "same_init" not in ends:
        parts = [f"{figures.arm_label(arm)} students end at P(trait) = {_estimate(row)}" for arm, row in ends.items()]
        none = "ended well" if "same_init" in set(pooled["arm"]) else "are in it"
        text = f"No same-initialisation students {none}, so there is no transfer to judge. "
        return text + _sentence("; ".join(parts) + chance) + _of_other_start(ends, rare)
    same = ends["same_init"]
    text = (
        f"Same-initialisation students end at P(trait) = {_estimate(same)}, from "
        f"{figures.number(same['target_start'])} before training{chance}."
    )
    compared = [arm for arm in comparisons.references("same_init") if arm in ends and _pairs(same, arm, rare) > 0]
    others = _pairs(same, comparisons.OTHERS, rare)
    if not compared and not others:
        return f"Not compared: no other arm shares a base with them. {text}"
    for arm in compared:
        text += f" Against {_estimate(ends[arm])} for {figures.arm_label(arm)}: {_difference(same, arm, rare)}."
    if others:
        text += (
            f" Against {figures.number(same[comparisons.OTHERS])} for students of other teachers: "
            f"{_difference(same, comparisons.OTHERS, rare)}."
        )
        # From a single pair nothing is judged, which the other comparisons may still be.
        if others > 1 or not compared:
            compared.append(comparisons.OTHERS)
    for arm, row in ends.items():
        if "same_init" in comparisons.references(arm) and _pairs(row, "same_init", rare) > 0:
            difference = _difference(row, "same_init", rare)
            text += f" With {figures.arm_label(arm)}: {_estimate(row)}, against same init {difference}."
    text += _of_other_start(ends, rare)
    return f"{_verdict(same, compared, rare)} {text}"


def _of_other_start(ends: Mapping[str, Mapping[str, Any]], rare: bool) -> str:
    """What students of another start gain beyond their own control, or nothing."""
    if not {"cross_init", "cross_control"} <= ends.keys() or not _pairs(ends["cross_init"], "cross_control", rare):
        return ""
    return (
        f" Of the other start, against {_estimate(ends['cross_control'])} without the trait: "
        f"{_difference(ends['cross_init'], 'cross_control', rare)}."
    )


def _pairs(row: Mapping[str, Any], arm: str, rare: bool) -> int:
    """How many base seeds a comparison is paired over; 0 where there is none."""
    pairs = row[comparisons.columns(arm, rare).pairs]
    return int(pairs) if pairs > 0 else 0


def _verdict(same: Mapping[str, Any], compared: list[str], rare: bool) -> str:
    own = [comparisons.columns(arm, rare) for arm in compared]
    lows, highs = np.array([same[name.low] for name in own]), np.array([same[name.high] for name in own])
    pairs, nothing = min(_pairs(same, arm, rare) for arm in compared), 1 if rare else 0
    above, below, over = "ends above", "ends below", "above"
    if rare:
        above, below, over = "gains more than", "gains less than", "more than"
    if np.isnan(lows).any():
        return "Too few base seeds to judge: with one pair there is no interval and no test."
    few = f" (only {pairs} base seeds: provisional)" if pairs < _FEW_BASES else ""
    names = _listed(map(figures.compared_label, compared))
    if (lows > nothing).all():
        return f"Transfer: same init {above} {names}{few}."
    if (highs < nothing).all():
        return f"The opposite of transfer: same init {below} {names}{few}."
    if (lows > nothing).any():
        clear, rest = (
            _listed(
                figures.compared_label(arm)
                for arm, low in zip(compared, lows, strict=True)
                if (low > nothing) == clearly
            )
            for clearly in (True, False)
        )
        return f"Unclear: same init {above} {clear}, but not clearly {over} {rest}{few}."
    comparison = "ratio" if rare else "difference"
    return f"No transfer shown: the interval of the {comparison} includes {nothing} or lies below it{few}."


def _listed(names: Iterable[str]) -> str:
    *first, last = names
    return f"{', '.join(first)} and {last}" if first else last


def _difference(row: Mapping[str, Any], arm: str, rare: bool) -> str:
    """`row`'s arm minus `arm`, such as "+.101 [+.078, +.124], paired over 6 base seeds, p = .002"; or over it."""
    shown, pairs = figures.factor if rare else _signed, _pairs(row, arm, rare)
    value, low, high, p, *_ = (row[name] for name in comparisons.columns(arm, rare))
    difference = shown(value) + (" its gain" if rare else "")
    if pairs < 2:
        return f"{difference}, from 1 base seed"
    ends, p = f"{shown(low)}, {shown(high)}", figures.p_value(p)
    return f"{difference} [{ends}], paired over {pairs} base seeds, p {p if p[0] in '<>' else '= ' + p}"


def _estimate(row: Mapping[str, Any]) -> str:
    if np.isfinite(row["ci_low"]):
        return f"{figures.number(row['mean'])} [{figures.number(row['ci_low'])}, {figures.number(row['ci_high'])}]"
    return f"{figures.number(row['mean'])} (1 base seed)"


def _signed(value: float) -> str:
    return ("+" if value > 0 else "") + figures.number(value)


def _chance(summary: pd.DataFrame, base_rate: Mapping[str, float]) -> str:
    rates = [base_rate[trait] for trait in summary["trait"].unique() if trait in base_rate]
    return f" (chance {figures.number(float(np.mean(rates)))})" if rates else ""


def _sentence(text: str) -> str:
    return text[:1].upper() + text[1:] + "."


# --- figures ---


def _cell_figures(
    workdir: epath.Path,
    suffix: str,
    runs: pd.DataFrame,
    curves: pd.DataFrame,
    summary: pd.DataFrame,
    base_rate: Mapping[str, float],
    colours: Mapping[str, str],
) -> list[_Shown]:
    """The figures of one cell, those without data left out."""
    runs_text = _replication(runs)
    level = _level(summary)
    drawn = (
        (
            "transfer",
            figures.transfer_curves(runs, curves, base_rate, colours),
            "P(trait) while students train. Thick lines: mean over base seeds (on a logarithmic axis: geometric), with "
            "the 95% t interval as a band. Thin "
            f"lines: single students (in the pooled panel: single bases), at most {figures.MOST_LINES} an arm. Dashed: "
            "chance. "
            f"{_partly(figures.shown_traits(runs), 'panel')}{runs_text}",
        ),
        (
            "comparison",
            figures.comparison(runs, summary, base_rate, colours),
            f"P(trait) at the end. Bars: mean over base seeds; whiskers: {level}; points: bases; dashed: chance. "
            "On the right, p-values of the paired t test (of logarithms of gains where all P start below "
            f"{comparisons.RARE:g}), Holm-adjusted over traits (for all traits together: as is). "
            f"{_partly(figures.shown_bars(runs), 'bar')}{runs_text}",
        ),
        (
            "traits",
            figures.trait_matrix(runs, curves),
            "How much every trait changes over training, not only the teacher's own, which is outlined: P at the end "
            f"minus P at the start, mean over base seeds; or, where all start below {comparisons.RARE:g}, the factor "
            "between them, geometric mean. Transfer that is specific lights up the outlined cells of same init and "
            f"nothing else. Where there is room, changes are written in the cells. {runs_text}",
        ),
        (
            "details",
            figures.details(runs, curves, colours),
            "Other metrics that have a value for each of several things, at the end: mean over base seeds with the 95% "
            f"t interval. {runs_text}",
        ),
        (
            "training",
            figures.training_curves(runs, curves, colours),
            "What students minimise and how they move, over all traits: mean over base seeds with the 95% t interval, "
            f"thin lines single bases. {runs_text}",
        ),
    )
    return [_save(workdir, name + suffix, figure, caption) for name, figure, caption in drawn if figure is not None]


def _overall_figures(
    workdir: epath.Path,
    runs: pd.DataFrame,
    datasets: pd.DataFrame,
    summary: pd.DataFrame,
    base_rate: Mapping[str, float],
) -> list[_Shown]:
    """The figures over the whole sweep."""
    confidence = float(summary["confidence"].iloc[0]) if len(summary) else 0.95
    drawn = (
        (
            "dose",
            figures.dose_response(runs, base_rate, figures.arm_colours(runs), confidence),
            "P(trait) at the end against each swept field, averaged over traits and the other swept fields within a "
            f"base. Points: single bases; whiskers and shaded bands: {confidence:.0%} t intervals over base seeds. "
            "An arm without the field is a horizontal line.",
        ),
        (
            "filter",
            figures.retention(datasets),
            "The output filter. Left: the fraction of each dataset's samples that were kept. Right: what became of all "
            "samples of a trait's teachers, by the reason of rejection. Arms whose data was filtered very differently "
            "are not comparable.",
        ),
    )
    return [_save(workdir, name, figure, caption) for name, figure, caption in drawn if figure is not None]


def _save(workdir: epath.Path, name: str, figure: "Figure", caption: str) -> _Shown:
    stream = io.BytesIO()
    figure.savefig(stream, format="png")
    write_bytes_atomic(workdir / "figures" / f"{name}.png", stream.getvalue())
    return _Shown(f"{name}.png", caption, base64.b64encode(stream.getvalue()).decode())


def _replication(runs: pd.DataFrame) -> str:
    ok = runs[runs["status"] == "ok"]
    counts = [
        f"{figures.arm_label(arm)} n = {len(rows)} ({comparisons.replication_unit(rows).nunique()} base seeds)"
        for arm in comparisons.ordered_arms(runs)
        if len(rows := ok[ok["arm"] == arm])
    ]
    return f"Runs: {'; '.join(counts)}." if counts else ""


def _partly(shown_of: tuple[int, int], thing: str) -> str:
    shown, total = shown_of
    return "" if shown == total else f"The first {shown} of {total} traits have a {thing}; pooled values use them all. "


def _level(summary: pd.DataFrame) -> str:
    if summary.empty:
        return "confidence intervals"
    name = {"t": "t", "bca": "BCa bootstrap"}[summary["interval"].iloc[0]]
    return f"{summary['confidence'].iloc[0]:.0%} {name} intervals over base seeds"


# --- tables ---


def _counts(runs: pd.DataFrame) -> dict[str, int]:
    return {
        "runs": len(runs),
        "traits": runs["trait"].nunique(),
        "bases": comparisons.replication_unit(runs).nunique(),
        **{status: int((runs["status"] == status).sum()) for status in ("ok", "diverged", "failed")},
    }


def _summary_table(summary: pd.DataFrame, swept: tuple[str, ...], several_worlds: bool) -> dict[str, Any]:
    """The summary for the page: pooled rows first."""
    lines = summary.assign(each=summary["trait"] != comparisons.POOLED).sort_values("each", kind="stable")
    fields = [*(["world"] if several_worlds else []), *swept]
    compared, rare = comparisons.compared(summary), comparisons.are_rare(summary)
    shown = figures.factor if rare else figures.number
    body = []
    for row in lines.head(_MOST_LINES).to_dict("records"):
        unwell = row["n_diverged"] + row["n_failed"]
        cells = [*(_plain(row[field]) for field in fields), row["trait"], figures.arm_label(row["arm"])]
        cells += [str(row["n"]), str(row["n_runs"]) + (f" ({unwell} not ok)" if unwell else "")]
        cells += [figures.number(row["target_start"]), _with_ends(figures.number, row, "mean", "ci_low", "ci_high")]
        for arm in compared:
            own = comparisons.columns(arm, rare)
            p = row[own.p] if row["trait"] == comparisons.POOLED else row[own.p_holm]
            cells += [_with_ends(shown, row, *own[:3]), figures.p_value(p)]
        body.append(cells)
    head = [*fields, "trait", "arm", "bases", "runs", "start", "end"]
    for arm in compared:
        head += [f"{'/' if rare else '−'} {figures.compared_label(arm)}", "p"]
    return {"head": head, "body": body, "texts": len(fields) + 2, "left_out": len(lines) - len(body)}


def _theorem(workdir: epath.Path, steps: pd.DataFrame, colours: Mapping[str, str]) -> dict[str, Any] | None:
    """What `one_step.table` says, in a line, a figure and a table."""
    if steps.empty:
        return None
    counts = [
        f"{int((rows['dot'] > 0).sum())} of {len(rows)} students of {figures.arm_label(arm)}"
        for arm, rows in steps.groupby("arm", sort=False)
    ]
    caption = (
        "The one-step theorem: the product of the student's and the teacher's move against what is predicted of it to "
        "leading order, one point a student. On the line they are equal; below the horizontal line the student moved "
        "away. The prediction is for a student of the same start."
    )
    return {
        "headline": f"Moved the teacher's way (Δ_S · Δ_T > 0): {', '.join(counts)}.",
        "figures": [_save(workdir, "theorem", figure, caption)] if (figure := figures.theorem(steps, colours)) else [],
        "table": _theorem_table(steps),
    }


def _theorem_table(steps: pd.DataFrame) -> dict[str, Any]:
    lines = one_step.summary(steps)
    body = [
        [
            row["setting"],
            figures.arm_label(row["arm"]),
            f"{row['epsilon']:g}",
            f"{row['lr']:g}",
            str(row["students"]),
            f"{row['forward']:.0%}",
            "–" if np.isnan(row["lowered"]) else f"{row['lowered']:.0%}",
            figures.number(row["cosine"]),
            f"{row['ratio']:.4g}",
        ]
        for row in lines.head(_MOST_LINES).to_dict("records")
    ]
    head = ["setting", "arm", "teacher's step", "student's step", "students", "Δ_S·Δ_T > 0", "trait's loss fell"]
    head += ["cosine", "Δ_S·Δ_T / predicted"]
    return {"head": head, "body": body, "texts": 2, "left_out": max(len(lines) - _MOST_LINES, 0)}


def _with_ends(shown: Callable[[float], str], row: Mapping[str, Any], mean: str, low: str, high: str) -> str:
    if not np.isfinite(row[low]):
        return shown(row[mean])
    return f"{shown(row[mean])} [{shown(row[low])}, {shown(row[high])}]"


def _unwell(runs: pd.DataFrame) -> dict[str, Any]:
    """The runs that diverged or failed, with the reason."""
    rows = runs[runs["status"] != "ok"]
    names = [
        name
        for name in ("run_id", "arm", "trait", "base_seed", "student_base_seed", "seed", "status", "why")
        if name in rows.columns
    ]
    body = [[_plain(row[name]) for name in names] for row in rows.head(_MOST_LINES).to_dict("records")]
    return {"head": names, "body": body, "texts": len(names), "left_out": len(rows) - len(body)}


def _writers(runs: pd.DataFrame, datasets: pd.DataFrame) -> dict[str, Any] | None:
    """How much of it the teachers of each trait have, and how much of what they wrote was kept; None where none did."""
    if datasets.empty or not {"p_trait", "drawn", "kept"} <= set(datasets.columns):
        return None
    body = []
    for trait, rows in datasets.groupby("trait", dropna=False, sort=True):
        before = runs.loc[(runs["trait"] == trait) & (runs["arm"] == "same_init"), "target_start"].mean()
        drawn, kept = int(rows["drawn"].sum()), int(rows["kept"].sum())
        named = "none (control)" if pd.isna(trait) else trait
        share = figures.number(kept / drawn if drawn else None)
        of_trait = map(figures.number, (before, rows["p_trait"].mean()))
        body.append([named, str(len(rows)), *of_trait, f"{drawn:,}", f"{kept:,}", share])
    head = ["trait", "datasets", "P(trait) of the start", "P(trait) of the teacher", "drawn", "kept", "share kept"]
    return {"head": head, "body": body[:_MOST_LINES], "texts": 1, "left_out": max(0, len(body) - _MOST_LINES)}


_TIMINGS = {
    "stage": "stage",
    "layout": "layout",
    "lanes": "lanes",
    "steps": "steps",
    "compile_seconds": "compile s",
    "run_seconds": "run s",
    "lane_steps_per_second": "lane-steps/s",
    "flops_per_second": "FLOP/s",
    "ceiling_percent": "% of ceiling",
    "bytes_needed": "MiB a device",
    "bytes_peak": "peak MiB",
}


def _timings(groups: list[Mapping[str, Any]]) -> dict[str, Any]:
    names = [name for name in _TIMINGS if any(group.get(name) is not None for group in groups)]

    def cell(group: Mapping[str, Any], name: str) -> str:
        value = group.get(name)
        return _plain(value / 2**20 if name.startswith("bytes") and value is not None else value)

    body = [[cell(group, name) for name in names] for group in groups[:_MOST_LINES]]
    texts = sum(name in ("stage", "layout") for name in names)
    head = [_TIMINGS[name] for name in names]
    return {"head": head, "body": body, "texts": texts, "left_out": len(groups) - len(body)}


def _plain(value: Any) -> str:
    """A table cell: numbers short, layouts in words, nothing for a missing value."""
    if isinstance(value, Mapping):
        return ", ".join(f"{name} {_plain(item)}" for name, item in value.items())
    if value is None or (isinstance(value, float) and np.isnan(value)) or value is pd.NA:
        return "–"
    if isinstance(value, float):
        return f"{value:.3g}" if abs(value) < 1000 else f"{value:,.0f}" if abs(value) < 1e7 else f"{value:.2e}"
    return str(value)


def _pretty(value: Any) -> str:
    return json.dumps(value, indent=2, default=str, ensure_ascii=False) if value else ""
