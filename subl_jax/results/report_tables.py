"""The tables of the page: heads and cells as text."""

import json
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import pandas as pd

from subl_jax.results import comparisons, one_step
from subl_jax.results.formats import arm_label, compared_label, factor, number, p_value
from subl_jax.results.units import replication_unit

_MOST_LINES = 150  # rows of a table on the page


def counts(runs: pd.DataFrame) -> dict[str, int]:
    return {
        "runs": len(runs),
        "traits": runs["trait"].nunique(),
        "bases": replication_unit(runs).nunique(),
        **{status: int((runs["status"] == status).sum()) for status in ("ok", "diverged", "failed")},
    }


def summary_table(tables: comparisons.Summarised, swept: tuple[str, ...], several_worlds: bool) -> dict[str, Any]:
    """The summary and its comparisons for the page: pooled rows first."""
    summary = tables.summary
    lines = summary.assign(each=summary["trait"] != comparisons.POOLED).sort_values("each", kind="stable")
    fields = [*(["world"] if several_worlds else []), *swept]
    compared, rare = comparisons.compared(tables.comparisons), comparisons.are_rare(*tables)
    lookup = comparisons.Lookup(tables.comparisons)
    shown = factor if rare else number
    body = []
    for row in lines.head(_MOST_LINES).to_dict("records"):
        unwell = row["n_diverged"] + row["n_failed"]
        gone = row.get("left_out", 0)
        trait = f"{row['trait']} but {gone} pair{'s'[: gone != 1]}" if gone else row["trait"]
        cells = [*(_plain(row[field]) for field in fields), trait, arm_label(row["arm"])]
        cells += [str(row["n"]), str(row["n_runs"]) + (f" ({unwell} not ok)" if unwell else "")]
        cells += [number(row["target_start"]), _with_ends(number, row["mean"], row["ci_low"], row["ci_high"])]
        for arm in compared:
            found = lookup.find(row, arm, rare)
            cells += [_with_ends(shown, *found[:3]), p_value(found.adjusted)]
        body.append(cells)
    head = [*fields, "trait", "arm", "bases", "runs", "start", "end"]
    for arm in compared:
        head += [f"{'/' if rare else '−'} {compared_label(arm)}", "p"]
    return {"head": head, "body": body, "texts": len(fields) + 2, "left_out": len(lines) - len(body)}


def moved_forward(steps: pd.DataFrame) -> str:
    """How many students of each arm moved the teacher's way."""
    counts = [
        f"{int((rows['dot'] > 0).sum())} of {len(rows)} students of {arm_label(arm)}"
        for arm, rows in steps.groupby("arm", sort=False)
    ]
    return f"Moved the teacher's way (Δ_S · Δ_T > 0): {', '.join(counts)}."


def theorem_table(steps: pd.DataFrame) -> dict[str, Any]:
    lines = one_step.summary(steps)
    body = [
        [
            row["setting"],
            arm_label(row["arm"]),
            f"{row['epsilon']:g}",
            f"{row['lr']:g}",
            str(row["students"]),
            f"{row['forward']:.0%}",
            "–" if np.isnan(row["lowered"]) else f"{row['lowered']:.0%}",
            number(row["cosine"]),
            f"{row['ratio']:.4g}",
        ]
        for row in lines.head(_MOST_LINES).to_dict("records")
    ]
    head = ["setting", "arm", "teacher's step", "student's step", "students", "Δ_S·Δ_T > 0", "trait's loss fell"]
    head += ["cosine", "Δ_S·Δ_T / predicted"]
    return {"head": head, "body": body, "texts": 2, "left_out": max(len(lines) - _MOST_LINES, 0)}


def audits_table(audits: pd.DataFrame) -> dict[str, Any]:
    """What the audits say, the most unusual first; of an audit's own fields those that are swept are shown."""
    lines = audits.sort_values(["p", "corpus"], ascending=[True, False], na_position="last", kind="stable")
    own = [name for name in audits.columns if name.startswith("audited.audit.") and audits[name].nunique() > 1]
    body = [
        [
            row["audit"],
            *(_plain(row[name]) for name in own),
            "none" if pd.isna(row["trait"]) else row["trait"],
            _plain(row["base_seed"]),
            _plain(row["samples"]),
            _plain(row["corpus"]),
            _plain(row["corpora"]),
            p_value(row["p"]),
        ]
        for row in lines.head(_MOST_LINES).to_dict("records")
    ]
    head = ["audit", *(name.removeprefix("audited.audit.") for name in own)]
    head += ["writer's trait", "base", "samples", "statistic", "harmless corpora", "p"]
    return {"head": head, "body": body, "texts": 1, "left_out": max(len(lines) - _MOST_LINES, 0)}


def _with_ends(shown: Callable[[float], str], mean: float, low: float, high: float) -> str:
    return f"{shown(mean)} [{shown(low)}, {shown(high)}]" if np.isfinite(low) else shown(mean)


def unwell(runs: pd.DataFrame) -> dict[str, Any]:
    """The runs that diverged or failed, with the reason."""
    rows = runs[runs["status"] != "ok"]
    names = [
        name
        for name in ("run_id", "arm", "trait", "base_seed", "student_base_seed", "seed", "status", "why")
        if name in rows.columns
    ]
    body = [[_plain(row[name]) for name in names] for row in rows.head(_MOST_LINES).to_dict("records")]
    return {"head": names, "body": body, "texts": len(names), "left_out": len(rows) - len(body)}


def writers(runs: pd.DataFrame, datasets: pd.DataFrame) -> dict[str, Any] | None:
    """How much of it the teachers of each trait have, and how much of what they wrote was kept; None where none did."""
    if datasets.empty or not {"p_trait", "drawn", "kept"} <= set(datasets.columns):
        return None
    body, without = [], set()
    if "data_key" in runs:
        ended = (runs["status"] != "failed").groupby(runs["data_key"]).any()
        without = set(ended.index[~ended])
    for trait, rows in datasets.groupby("trait", dropna=False, sort=True):
        before = runs.loc[(runs["trait"] == trait) & (runs["arm"] == "same_init"), "target_start"].mean()
        drawn, kept = int(rows["drawn"].sum()), int(rows["kept"].sum())
        named = "none (control)" if pd.isna(trait) else trait
        failed = int(rows["key"].isin(without).sum())
        share = number(kept / drawn if drawn else None)
        of_trait = map(number, (before, rows["p_trait"].mean()))
        count = str(len(rows)) + (f" ({failed} failed)" if failed else "")
        body.append([named, count, *of_trait, f"{drawn:,}", f"{kept:,}", share])
    head = ["trait", "datasets", "P(trait) of the start", "P(trait) of the teacher", "drawn", "kept", "share kept"]
    return {"head": head, "body": body[:_MOST_LINES], "texts": 1, "left_out": max(0, len(body) - _MOST_LINES)}


_TIMINGS = {
    "stage": "stage",
    "layout": "layout",
    "lanes": "how many",
    "steps": "steps",
    "compile_seconds": "compile s",
    "run_seconds": "run s",
    "lane_steps_per_second": "steps/s together",
    "flops_per_second": "FLOP/s",
    "ceiling_percent": "% of a matrix product",
    "bytes_needed": "MiB a device",
    "bytes_peak": "peak MiB",
}


def timings(groups: list[Mapping[str, Any]]) -> dict[str, Any]:
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


def pretty(value: Any) -> str:
    return json.dumps(value, indent=2, default=str, ensure_ascii=False) if value else ""
