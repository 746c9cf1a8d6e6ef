"""The tables of the results contract, from students and what is stored of them."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd

from subl_jax import specs
from subl_jax.store import Store

CURVES = {"run_id": str, "step": np.int64, "metric": str, "value": np.float64}


def named_metrics(world: specs.World, record: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """A record with one entry per number: `trait` of shape (…, traits) becomes `trait/<name>` of shape (…) each."""
    named: dict[str, np.ndarray] = {}
    for metric, values in record.items():
        names = world.labels.get(metric)
        if names is None:
            named[metric] = values
        else:
            named.update({f"{metric}/{name}": values[..., i] for i, name in enumerate(names)})
    return named


def runs_table(sweep: str, students: Sequence[specs.Student], store: Store) -> pd.DataFrame:
    """One row per student: identity, arm, trait, lineage, how it ended, and P(trait) before and after."""
    rows = [_run(sweep, student, store) for student in students]
    return pd.DataFrame(rows).drop_duplicates("run_id", ignore_index=True)


def _run(sweep: str, student: specs.Student, store: Store) -> dict[str, Any]:
    row = store.row(student.key)
    trait = specs.trait_of(student)
    writer = specs.source(student)
    start = specs.origin(student.start)
    _, curves = store.curves(student.key)
    target = curves.get(f"trait/{trait}", np.full(1, np.nan))
    return {
        "run_id": specs.run_id(student),
        "sweep": sweep,
        "world": student.world.name,
        "arm": specs.arm_of(student),
        "trait": trait,
        "base_seed": start.seed if writer is None else specs.origin(writer).seed,
        "student_base_seed": start.seed,
        "seed": student.seed,
        "status": row.status,
        "why": row.why,
        "target_start": float(target[0]),
        "target_end": float(target[-1]),
        "kept_fraction": _kept_fraction(student, store),
        "key": student.key,
        **specs.lineage(student),
    }


def _kept_fraction(student: specs.Student, store: Store) -> float:
    try:
        return store.row(student.data.key).info.get("kept_fraction", np.nan)
    except KeyError:  # imported or streamed; or pruned, or lost with a damaged shard, after the student was done
        return np.nan


def curves_table(students: Sequence[specs.Student], store: Store) -> pd.DataFrame:
    """Long form: run_id, step, metric, value. A number that does not exist (a control's cosine) has no row."""
    seen: set[str] = set()
    parts: dict[str, list[np.ndarray]] = {name: [] for name in CURVES}
    metrics: dict[str, int] = {}
    ids: list[str] = []
    for student in students:
        run_id = specs.run_id(student)
        if run_id in seen:
            continue
        seen.add(run_id)
        steps, curves = store.curves(student.key)
        if not curves:
            continue
        values = np.stack(list(curves.values())).astype(np.float64)
        codes = np.asarray([metrics.setdefault(metric, len(metrics)) for metric in curves])
        there = np.ones_like(values, bool) if store.status(student.key) == "diverged" else np.isfinite(values)
        there[:, 0] &= np.isfinite(values[:, 0])  # nothing is lost yet at step 0
        parts["run_id"].append(np.full(there.sum(), len(ids)))
        parts["step"].append(np.broadcast_to(steps, values.shape)[there])
        parts["metric"].append(np.broadcast_to(codes[:, None], values.shape)[there])
        parts["value"].append(values[there])
        ids.append(run_id)
    if not ids:
        return pd.DataFrame({name: pd.Series([], dtype=kind) for name, kind in CURVES.items()})
    columns = {name: np.concatenate(chunks) for name, chunks in parts.items()}
    return pd.DataFrame(
        {
            "run_id": pd.Categorical.from_codes(columns["run_id"], ids),
            "step": columns["step"].astype(np.int64),
            "metric": pd.Categorical.from_codes(columns["metric"], list(metrics)),
            "value": columns["value"],
        }
    )


def datasets_table(students: Sequence[specs.Student], store: Store) -> pd.DataFrame:
    """One row per dataset that a teacher wrote: whose, the teacher's own P(trait), how much was drawn and kept, and why
    the rest was not."""
    rows: dict[str, dict[str, Any]] = {}
    stored = store.done()
    for student in students:
        node = student.data
        if isinstance(node, specs.Dataset) and node.key in stored and node.key not in rows:
            trait = specs.trait_of(student.replace(trait=None))
            rows[node.key] = {
                "key": node.key,
                "trait": trait,
                "p_trait": _last(store, node.teacher, f"trait/{trait}") if node.teacher.key in stored else np.nan,
                "base_seed": specs.origin(node.teacher).seed,
                "seed": node.seed,
                **store.row(node.key).info,
            }
    empty = ["key", "trait", "p_trait", "base_seed", "kept_fraction"]
    return pd.DataFrame(list(rows.values()), columns=None if rows else empty)


def _last(store: Store, node: specs.Node, metric: str) -> float:
    curve = store.curves(node.key)[1].get(metric)
    return np.nan if curve is None else float(curve[-1])
