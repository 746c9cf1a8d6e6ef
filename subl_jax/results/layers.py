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
    runs = runs[runs["trait"].notna()]
    if runs.empty or "world.layers" not in runs:
        return pd.DataFrame(columns=list(COLUMNS))
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
    runs = runs.assign(teacher=teacher, student=student)
    found = []
    for (arm, of_teacher, of_student), part in runs.groupby(["arm", "teacher", "student"], dropna=False, sort=False):
        ends = by_base(part).mean(axis=0).to_numpy()
        mean, low, high = interval(ends, confidence, probability=True)
        found.append((arm, of_teacher, of_student, mean, low, high, int(np.isfinite(ends).sum())))
    return pd.DataFrame(found, columns=list(COLUMNS))


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
