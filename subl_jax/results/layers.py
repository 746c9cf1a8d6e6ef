"""Which parameters teachers and students train, in words, and how much of a trait passes between these parts."""

import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

from subl_jax.results.cells import is_missing
from subl_jax.results.units import by_base
from subl_jax.statistics.intervals import interval

COLUMNS = ("arm", "teacher", "student", "mean", "low", "high", "bases")
ALL, NONE = "all", "none"
_LAYER = re.compile(r"^layers_(\d+)(?:/\*)?$")


def trained(row: Mapping[str, Any], who: str, layers: int) -> str | None:
    """What a row's teacher or student trains: "layer 3", "layers 0–2", "all but 4", "attention", "rank 8", …; None
    without one.

    row: of `runs`, with lineage columns. layers: of the model.
    """
    if is_missing(row.get(f"{who}.train.steps")):
        return None
    patterns = row.get(f"{who}.train.trainable")
    patterns = () if is_missing(patterns) else tuple(json.loads(patterns))
    if row.get(f"{who}.train.by_layer") is not True:
        rank = row.get(f"{who}.lora.rank")
        return named(patterns, layers) if is_missing(rank) else f"rank {int(rank)}"
    # A field that came later has no column where it is at its default.
    first, last = (
        fallback if is_missing(value := row.get(f"{who}.train.{name}")) else int(value)
        for name, fallback in (("first_layer", 0), ("last_layer", -1))
    )
    first, last = first % layers, last % layers
    inside = range(first, last + 1) if first <= last else [*range(first, layers), *range(last + 1)]
    return spelled(sorted(inside), layers)


def spelled(inside: Sequence[int], layers: int) -> str:
    """Some of the layers 0 … `layers` − 1 in words."""
    left_out = sorted(set(range(layers)) - set(inside))
    if not left_out:
        return "all layers"
    if len(inside) == 1:
        return f"layer {inside[0]}"
    if len(left_out) == 1:
        return f"all but {left_out[0]}"
    if list(inside) == list(range(inside[0], inside[-1] + 1)):
        return f"layers {inside[0]}–{inside[-1]}"
    return "layers " + ", ".join(map(str, inside))


def named(patterns: Sequence[str], layers: int) -> str:
    """Patterns of parameters in words: `layers_*/mlp/*` is "mlp", `layers_3/*` "layer 3"; all of them where empty."""
    if not patterns or "*" in patterns:
        return ALL
    if set(patterns) == {"*kernel", "*embedding"}:
        return "all matrices"
    inside = sorted(int(found[1]) for pattern in patterns if (found := _LAYER.match(pattern)))
    others = [_word(pattern) for pattern in patterns if not _LAYER.match(pattern)]
    if inside and others == ["embed", "final norm"]:  # whatever is no layer
        return spelled(inside, layers)
    return ", ".join([*([spelled(inside, layers)] if inside else []), *others])


def _word(pattern: str) -> str:
    word = re.sub(r"^layers_\*/?", "", pattern).strip("/*_").replace("_", " ")
    return {"": "all layers", "norm": "norms"}.get(word, word)


def shared(row: Mapping[str, Any], layers: int) -> str | None:
    """What of its start a student of a `Mix` shares with its teacher; None of another student."""
    keep = row.get("start.mix.keep")
    return None if is_missing(keep) else named(json.loads(keep), layers)


def table(runs: pd.DataFrame, confidence: float = 0.95) -> pd.DataFrame:
    """P(trait) at the end by what teacher and student train, over bases: the columns of `COLUMNS`. Its t intervals are
    on the logit scale.

    `teacher` of a control is missing. Of students that share only a part of the teacher's start, `student` is that
    part; of those beside them, "all" and "none".
    """
    found = []
    for cell, ends in _by_parts(runs).items():
        mean, low, high = interval(ends, confidence, probability=True)
        found.append((*cell, mean, low, high, int(ends.notna().sum())))
    return pd.DataFrame(found, columns=list(COLUMNS))


def gains(runs: pd.DataFrame, confidence: float = 0.95) -> pd.DataFrame:
    """P(trait) of same_init less that of the control that trains the same part, paired by base.

    Columns: `teacher`, `student`, `gain`, `low`, `high` (t intervals), `bases`.
    """
    found = [
        (*parts, *interval(of_bases, confidence), int(of_bases.notna().sum()))
        for parts, of_bases in _gains(_by_parts(runs)).items()
    ]
    return pd.DataFrame(found, columns=["teacher", "student", "gain", "low", "high", "bases"])


def trends(runs: pd.DataFrame, confidence: float = 0.95) -> pd.DataFrame:
    """How much the gain over the control changes from one layer to the next deeper one: a slope for each base.

    Rows, as far as they were run: `both`, where teacher and student train the same layer; `teacher`, over the teacher's
    layer, over all students; `student` likewise; `student of all`, where the teacher trains all layers.
    Columns: `over`, `slope` per layer, `low`, `high`, `bases`.
    """
    cells = [(*(_depth(name) for name in parts), of_bases) for parts, of_bases in _gains(_by_parts(runs)).items()]
    one = [cell for cell in cells if cell[0] is not None and cell[1] is not None]
    lines = {
        "both": [(teacher, of_bases) for teacher, student, of_bases in one if teacher == student],
        "teacher": [(teacher, of_bases) for teacher, _, of_bases in one],
        "student": [(student, of_bases) for _, student, of_bases in one],
        "student of all": [(cell[1], cell[2]) for cell in cells if cell[0] is None and cell[1] is not None],
    }
    found = []
    for over, points in lines.items():
        if len({depth for depth, _ in points}) < 2:
            continue
        depths, of_bases = zip(*points, strict=True)
        by_layer = pd.concat(of_bases, axis=1).T.groupby(np.array(depths)).mean().T
        depth = by_layer.columns.to_numpy(float)
        depth = depth - depth.mean()
        slopes = (by_layer * depth).sum(axis=1, skipna=False) / (depth @ depth)
        found.append((over, *interval(slopes, confidence), int(slopes.notna().sum())))
    return pd.DataFrame(found, columns=["over", "slope", "low", "high", "bases"])


def _depth(part: Any) -> int | None:
    """Which layer a part is; None of another one, such as all layers."""
    found = re.fullmatch(r"layer (\d+)", str(part))
    return int(found[1]) if found else None


def _by_parts(runs: pd.DataFrame) -> dict[tuple[Any, Any, Any], pd.Series]:
    """(arm, what the teacher trains, what the student trains or shares) → P(trait) at the end by base."""
    runs = runs[runs["trait"].notna()]
    if runs.empty or "world.layers" not in runs:
        return {}
    rows = runs.to_dict("records")
    layers = [int(row["world.layers"]) if not is_missing(row["world.layers"]) else 0 for row in rows]
    of_starts = "start.mix.keep" in runs
    teacher = [trained(row, "teacher", n) if n else None for row, n in zip(rows, layers, strict=True)]
    student = [
        (shared(row, n) or {"cross_init": NONE}.get(row["arm"], ALL) if of_starts else trained(row, "student", n))
        if n
        else None
        for row, n in zip(rows, layers, strict=True)
    ]
    parts = runs.assign(teacher=teacher, student=student).groupby(
        ["arm", "teacher", "student"], dropna=False, sort=False
    )
    return {cell: by_base(part).mean(axis=0) for cell, part in parts}


def _gains(found: Mapping[tuple[Any, Any, Any], pd.Series]) -> dict[tuple[Any, Any], pd.Series]:
    """(what the teacher trains, what the student trains) → same_init less the control of the same student, by base."""
    controls = {student: ends for (arm, _, student), ends in found.items() if arm == "control"}
    return {
        (teacher, student): ends - controls[student]
        for (arm, teacher, student), ends in found.items()
        if arm == "same_init" and student in controls
    }


def teachers(runs: pd.DataFrame, datasets: pd.DataFrame) -> dict[str, float]:
    """The mean P(trait) that teachers have reached themselves, by what they train; empty where that is not known."""
    if "world.layers" not in runs or "p_trait" not in datasets:
        return {}
    reached = runs["data_key"].map(datasets.set_index("key")["p_trait"].to_dict())
    names = [
        None if is_missing(row["world.layers"]) else trained(row, "teacher", int(row["world.layers"]))
        for row in runs.to_dict("records")
    ]
    return reached.groupby(pd.Series(names, runs.index, dtype=object)).mean().dropna().to_dict()


def parts(column: pd.Series) -> list[str]:
    """The parts that occur, layers in their order."""

    def place(name: str) -> tuple[Any, ...]:
        kinds = ("rank ", "layer ", "layers ", "all but ", "all layers")
        kind = next((i for i, start in enumerate(kinds) if name.startswith(start)), len(kinds))
        return (kind, [int(digit) for digit in re.findall(r"\d+", name)])

    return sorted(column.dropna().unique(), key=place)
