"""What `python -m subl_jax predict` computes and prints."""

import io
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import jax
import numpy as np
import pandas as pd
from etils import epath
from rich.console import Console
from rich.table import Table

from subl_jax import specs
from subl_jax.app import cli
from subl_jax.audits import AdamUpdate, FirstUpdate, FisherUpdate, Prediction, PromptRatio, Rollout
from subl_jax.channels.imported import imported, suspicious
from subl_jax.engine.observers import NoTracker
from subl_jax.engine.plan import plan_of
from subl_jax.engine.preemption import preemption_notice
from subl_jax.engine.runner import Engine
from subl_jax.engine.settings import Settings
from subl_jax.errors import InputError
from subl_jax.results.load import load
from subl_jax.storage.store import Row, Store
from subl_jax.storage.workdir import lock, open_workdir
from subl_jax.tracking.terminal import Progress

if TYPE_CHECKING:
    from matplotlib.figure import Figure as Drawn

_NULL_ROWS = 1024  # samples that the base writes, at most


def student_of(base: str, seed: int) -> tuple[specs.Student, Store | None]:
    """A student that starts from the base of `seed` in a sweep file or workdir, and where its base may be stored.

    Raises:
      InputError: no such sweep, or none of its students starts from such a base on a written dataset.
    """
    if epath.Path(base.partition(":")[0]).suffix == ".py":
        students, store = cli.command(base, cli.load_sweep(base), ()).students, None
    else:
        results = load(base)
        store = results.store
        of_seed = results.runs[results.runs["student_base_seed"] == seed]
        keys = (results.runs if of_seed.empty else of_seed)["key"].drop_duplicates()
        students = [specs.from_json(store.spec(key)) for key in keys]
    found = [
        each
        for each in students
        if isinstance(each, specs.Student)
        and isinstance(each.start, specs.Base)
        and isinstance(each.data, specs.Dataset)
    ]
    chosen = next((each for each in found if each.start.seed == seed), None)
    if chosen is None:
        seeds = sorted({each.start.seed for each in found})
        there = (
            f"its bases have the seeds {', '.join(map(str, seeds))}" if seeds else "no student learns a dataset there"
        )
        raise InputError(f"--seed {seed}: {base} has no such base; {there}")
    return chosen, store


def data_of(data: str, world: specs.World) -> specs.Imported:
    """A file, or a dataset of a workdir (`WORKDIR:KEY`), as data of `world`. Raises InputError."""
    place, colon, key = data.rpartition(":")
    folder = epath.Path(place if colon else data).expanduser()
    if not folder.is_dir():
        return imported(data, world)
    table = load(folder).datasets
    matching = table[table["key"].str.startswith(key)] if colon else table.head(0)
    if len(matching) != 1:
        listed = [
            f"{row.key[:12]} ({row.trait if isinstance(row.trait, str) else 'no trait'}, base {row.base_seed})"
            for row in table.head(20).itertuples()
        ]
        raise InputError(
            f"--data {data}: {len(matching)} datasets are called so; give {folder}:KEY, of {', '.join(listed)}"
        )
    return imported(folder / "datasets" / f"{matching['key'].iloc[0]}.jsonl", world)


def gains(
    student: specs.Student, stored: Store | None, data: specs.Data, folder: epath.Path, rows: int, rollout: int
) -> tuple[pd.DataFrame, list[str]]:
    """Predicted gains (traits, predictors), and lines to show. `stored` is where the base may be finished already.

    Raises:
      InputError: the student, its world or the data do not allow it; the base wrote too little.
    """
    written = student.data
    null = written.replace(teacher=student.start, size=min(written.size, _NULL_ROWS), seed=0)
    audits: list[Prediction] = [each(student.train, null, student.lora, rows=rows) for each in _predictors(student)]
    if rollout:
        audits.append(Rollout(student.train, null, student.lora, steps=rollout))
    audited = [specs.Audited(data, audit, student.start) for audit in audits]
    store = _computed(audited, student.start, stored, folder)
    bad = next((store.row(each.key) for each in audited if store.status(each.key) != "ok"), None)
    if bad is not None:
        raise InputError(f"this cannot be predicted: {bad.why}")
    traits = student.world.traits
    curves = {each.audit.kind: store.curves(each.key)[1] for each in audited}
    table = pd.DataFrame(
        {kind: [float(curve[f"gain/{trait}"][-1]) for trait in traits] for kind, curve in curves.items()}, index=traits
    )
    told = suspicious(data, student.world.standard_filter)
    return table, [f"warning: {told}"] if told else []


def _predictors(student: specs.Student) -> tuple[type[Prediction], ...]:
    """Those that need every sample's gradient only where these are small; told bases where there are such."""
    told = (PromptRatio,) if isinstance(student.world, specs.TakesSystemPrompts) else ()
    return (FirstUpdate, *told) if student.lora else (FirstUpdate, AdamUpdate, FisherUpdate, *told)


def _computed(rows: Sequence[specs.Audited], base: specs.Base, stored: Store | None, folder: epath.Path) -> Store:
    """The store in which all `rows` are finished."""
    workdir = open_workdir(folder)
    progress = Progress(Console(stderr=True))
    with lock(workdir), progress, preemption_notice() as preempted:
        store = Store(workdir, warn=progress.warn)
        artefact = stored.get(base.key) if stored is not None and base.key in stored.done() else None
        if artefact is not None and base.key not in store.done():
            steps, curves = stored.curves(base.key)
            ok = Row(base.key, specs.to_json(base), "ok", None)
            tree = jax.tree.map(lambda x: np.asarray(x)[None], artefact)
            store.put(base.stage, [ok], tree, {name: values[None] for name, values in curves.items()}, steps)
        settings = Settings(tracker="none", measure_layout=False)
        engine = Engine(workdir, "predict", store, settings, NoTracker(), progress, preempted)
        engine.compute(plan_of(list(rows), store))
    return store


def shown(gains: pd.DataFrame, most: int = 24) -> Table:
    """Traits by their mean rank over predictors, with every predictor's gain and rank."""
    ranks = gains.rank(ascending=False, method="first").astype(int)
    ordered = ranks.mean(axis=1).sort_values(kind="stable").index[:most]
    table = Table("trait", *(column for name in gains for column in (name.replace("_", " "), "rank")))
    for trait in ordered:
        cells: list[str] = []
        for name in gains:
            cells += [f"{gains.loc[trait, name]:+.3g}", str(ranks.loc[trait, name])]
        table.add_row(trait, *cells)
    return table


def scores(summary: pd.DataFrame) -> Table:
    """The summary of a benchmark: its test half, where there is one."""
    half = "test" if (summary["half"] == "test").any() else summary["half"].iloc[0]
    summary = summary[summary["half"] == half]
    if summary["setting"].nunique() == 2:  # one setting, which is all there is
        summary = summary[summary["setting"] != "all"]
    table = Table(title=f"{half} half of the bases; means and 95 % intervals over bases")
    for name in ("predictor", "setting", "datasets", "first", "Spearman", "wrong sign", "slope", "cost, once"):
        table.add_column(name, no_wrap=name == "predictor")
    for row in summary.to_dict("records"):
        table.add_row(
            row["predictor"].replace("_", " "),
            row["setting"],
            str(row["datasets"]),
            *(_interval(row, name) for name in ("top1", "spearman", "sign_errors", "slope")),
            f"{row['cost']:.1%}, {row['cost_once']:.1%}",
        )
    return table


def _interval(row: dict[str, Any], name: str) -> str:
    if not np.isfinite(row[name]):
        return "–"
    if not np.isfinite(row[f"{name}_low"]):
        return f"{row[name]:.2f}"
    return f"{row[name]:.2f} [{row[f'{name}_low']:.2f}, {row[f'{name}_high']:.2f}]"


def png(figure: "Drawn") -> bytes:
    stream = io.BytesIO()
    figure.savefig(stream, format="png")
    return stream.getvalue()
