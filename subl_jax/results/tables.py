"""The tables of the results contract, from students and what is stored of them."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

from subl_jax import specs
from subl_jax.specs.metrics import TARGET, target_of
from subl_jax.storage.datasets import HASH
from subl_jax.storage.store import Store


def runs_table(sweep: str, students: Sequence[specs.Student], store: Store) -> pd.DataFrame:
    """One row per student: identity, arm, trait, lineage, how it ended, and P(trait) before and after."""
    named = specs.named(students)
    ids, students = list(named), list(named.values())
    rows = [store.row(student.key) for student in students]
    writers = [student.data.first_writer for student in students]
    starts = [specs.origin(student.start) for student in students]
    begins, ends = _targets(students, store)
    columns = {
        "run_id": ids,
        "sweep": sweep,
        "world": [student.world.name for student in students],
        "arm": [specs.arm_of(student) for student in students],
        "trait": [specs.trait_of(student) for student in students],
        "data_trait": [student.given_trait for student in students],
        "base_seed": [
            start.seed if writer is None else specs.origin(writer).seed
            for start, writer in zip(starts, writers, strict=True)
        ],
        "student_base_seed": [start.seed for start in starts],
        "seed": [student.seed for student in students],
        "status": [row.status for row in rows],
        "why": [row.why for row in rows],
        "target_start": begins,
        "target_end": ends,
        "kept_fraction": [_kept_fraction(student, store) for student in students],
        "key": [student.key for student in students],
        "data_key": [_data_key(student) for student in students],
        "hop": [student.data.hops for student in students],
    }
    return pd.concat([pd.DataFrame(columns), _lineages(students)], axis=1)


def _data_key(student: specs.Student) -> str | None:
    """The key of the dataset or the imported file; a stream is no node and has none."""
    return student.data.key if isinstance(student.data, specs.Node) else None


def _targets(students: Sequence[specs.Student], store: Store) -> tuple[np.ndarray, np.ndarray]:
    """P of each student's trait, first and last; nan where it was not measured."""
    begins, ends = np.full((2, len(students)), np.nan)
    metrics = [f"trait/{specs.trait_of(student)}" for student in students]
    for which, _, curves in store.many_curves([student.key for student in students]):
        for row, i in enumerate(which):
            if metrics[i] in curves:
                begins[i], ends[i] = curves[metrics[i]][row, [0, -1]]
    return begins, ends


def _lineages(students: Sequence[specs.Student]) -> pd.DataFrame:
    """`specs.lineage` of every student. What students share is flattened once: there may be 100,000 of them."""
    parts: dict[str, list[dict[str, Any]]] = {}  # role → columns of each spec that has it
    known: dict[tuple[str, int], int] = {}  # role and id of a spec → its place among these
    places: dict[str, np.ndarray] = {}  # role → the place of each student's, or -1
    for i, student in enumerate(students):
        for role, spec in specs.ancestry(student):
            if role not in parts:
                parts[role], places[role] = [], np.full(len(students), -1)
            place = known.setdefault((role, id(spec)), len(parts[role]))
            if place == len(parts[role]):
                parts[role].append(specs.flat(role, spec))
            places[role][i] = place
    tables = [pd.DataFrame(part).reindex(places[role]).reset_index(drop=True) for role, part in parts.items()]
    return pd.concat(tables, axis=1) if tables else pd.DataFrame()


def _kept_fraction(student: specs.Student, store: Store) -> float:
    try:
        return store.row(student.data.key).info.get("kept_fraction", np.nan)
    except KeyError:  # imported or streamed; or pruned, or lost with a damaged shard, after the student was done
        return np.nan


def curves_table(students: Sequence[specs.Student], store: Store) -> pd.DataFrame:
    """Long form: run_id, step, metric, value. A number that does not exist (a control's cosine) has no row.

    `target` is the curve of the run's own trait once more, so that one name means it in all runs. Students that serve
    several traits are stored once, so it is made here, row by row.
    """
    named = specs.named(students)
    ids, keys = list(named), [student.key for student in named.values()]
    traits = [specs.trait_of(student) for student in named.values()]
    diverged = np.array([store.status(key) == "diverged" for key in keys])
    # Read batch by batch, as they are stored, and put into the order of the students.
    batches = []
    counts = np.zeros(len(ids), int)
    for which, steps, curves in store.many_curves(keys):
        own = [target_of(traits[i], curves) for i in which]
        measured = np.array([each is not None for each in own])
        nothing = np.full_like(next(iter(curves.values()))[0], np.nan)
        target = np.stack([nothing if each is None else curves[each][row] for row, each in enumerate(own)])
        values = np.stack([*curves.values(), target], axis=1)  # (rows, metrics, points)
        there = np.isfinite(values)
        there[:, :, 1:] |= diverged[which][:, None, None]  # nothing is lost yet at step 0
        there[:, -1] &= measured[:, None]
        counts[which] = there.sum(axis=(1, 2))
        batches.append((which, steps, [*curves, TARGET], values, there))
    metrics = sorted({metric for _, _, of_batch, _, _ in batches for metric in of_batch})
    ends = counts.cumsum()
    total = int(ends[-1]) if len(ends) else 0
    step, value = np.empty(total, np.int64), np.empty(total, np.float64)
    metric = np.empty(total, np.int32)
    for which, steps, of_batch, values, there in batches:
        row_of = np.nonzero(there)[0]  # rows are in order
        own = np.arange(len(row_of)) - np.repeat(counts[which].cumsum() - counts[which], counts[which])
        places = (ends - counts)[which][row_of] + own
        steps = steps if steps.ndim == 1 else steps[:, None]
        codes = np.searchsorted(metrics, of_batch)
        step[places] = np.broadcast_to(steps, values.shape)[there]
        metric[places] = np.broadcast_to(codes[:, None], values.shape)[there]
        value[places] = values[there]
    return pd.DataFrame(
        {
            "run_id": pd.Categorical.from_codes(np.repeat(np.arange(len(ids), dtype=np.int32), counts), ids),
            "step": step,
            "metric": pd.Categorical.from_codes(metric, metrics),
            "value": value,
        },
        copy=False,
    )


def datasets_table(rows: Sequence[specs.Row], store: Store) -> pd.DataFrame:
    """One row per dataset that a teacher wrote, or that was made of such: whose, the teacher's own P(trait), how much
    was drawn and kept, and why the rest was not.

    Data of several writers have no P(trait), and the base seed of the first writer that has a trait.
    """
    found: dict[str, dict[str, Any]] = {}
    stored = store.done()
    for data in (spec for row in rows for _, spec in row.data.kin() if isinstance(spec, specs.Data)):
        if data.key in stored and data.key not in found:
            trait, writer, first = data.given_trait, data.writer, data.first_writer
            asked = writer is not None and writer.key in stored
            found[data.key] = {
                "key": data.key,
                "trait": trait,
                "p_trait": _last(store.curves(writer.key)[1], f"trait/{trait}") if asked else np.nan,
                "base_seed": first.origin.seed if first else np.nan,
                "seed": data.seed,
                **{name: value for name, value in store.row(data.key).info.items() if not name.startswith(HASH)},
            }
    empty = ["key", "trait", "p_trait", "base_seed", "kept_fraction"]
    return pd.DataFrame(list(found.values()), columns=None if found else empty)


OF_AUDITS = (
    *("audit_id", "sweep", "world", "audit", "trait", "base_seed", "status", "why"),
    *("corpus", "p", "corpora", "samples", "key", "data_key"),
)


def audits_table(sweep: str, audited: Sequence[specs.Audited], store: Store) -> pd.DataFrame:
    """One row per audited dataset: what it is, what the audit says of the corpus, and its lineage.

    corpus: the statistic, the larger the more unusual. p: how often one of the `corpora` that are known to be harmless
    looks at least as unusual; missing without such. trait: of whoever wrote the data; missing where it has none.
    predicted, gain/<trait>: of audits that predict, the trait that would gain most, and how much each would.
    """
    rows = [store.row(node.key) for node in audited]
    curves = [store.curves(node.key)[1] for node in audited]
    columns = {
        "audit_id": [node.row_id for node in audited],
        "sweep": sweep,
        "world": [node.world.name for node in audited],
        "audit": [node.audit.kind or type(node.audit).__name__ for node in audited],
        "trait": [node.given_trait for node in audited],
        "base_seed": [node.by.origin.seed for node in audited],
        "status": [row.status for row in rows],
        "why": [row.why for row in rows],
        "corpus": [_last(each, "corpus") for each in curves],
        "p": [_last(each, "p") for each in curves],
        "corpora": [len(node.null) for node in audited],
        "samples": [node.data.size for node in audited],
        "key": [node.key for node in audited],
        "data_key": [node.data.key for node in audited],
    }
    if not audited:
        return pd.DataFrame(columns=list(OF_AUDITS))
    return pd.concat([pd.DataFrame(columns), _gains(curves), _lineages(audited)], axis=1)


def _gains(curves: Sequence[Mapping[str, np.ndarray]]) -> pd.DataFrame:
    """`predicted` and `gain/<trait>`, of audits that predict; no columns where none does."""
    names = list(dict.fromkeys(name for each in curves for name in each if name.startswith("gain/")))
    gains = pd.DataFrame({name: [_last(each, name) for each in curves] for name in names})
    if not names:
        return gains
    known = gains.notna().any(axis=1)
    gains.insert(0, "predicted", gains[known].idxmax(axis=1).str.removeprefix("gain/"))
    return gains


def _last(curves: Mapping[str, np.ndarray], metric: str) -> float:
    curve = curves.get(metric)
    return np.nan if curve is None else float(curve[-1])
