"""What commands share that ask one question of a base and a dataset: which these are, and the answer's rows."""

from collections.abc import Sequence

import jax
import numpy as np
from etils import epath
from rich.console import Console

from subl_jax import specs
from subl_jax.app import cli
from subl_jax.audits import ScoreVectors
from subl_jax.channels.imported import imported
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


def student_of(base: str, seed: int) -> tuple[specs.Student, Store | None]:
    """A student that starts from the base of `seed` in a sweep file or workdir, and where its base may be stored.

    In a sweep that only audits it is one that trains what the audit's score vectors look at.

    Raises:
      InputError: no such sweep, or none of its students starts from such a base on a written dataset.
    """
    if epath.Path(base.partition(":")[0]).suffix == ".py":
        rows, store = cli.command(base, cli.load_sweep(base), ()).students, None
    else:
        results = load(base)
        store = results.store
        of_seed = results.runs[results.runs["student_base_seed"] == seed]
        keys = [*(results.runs if of_seed.empty else of_seed)["key"].drop_duplicates()]
        if results.audits is not None and not keys:
            vectors = results.audits[results.audits["audit"] == ScoreVectors.kind]
            of_seed = vectors[vectors["base_seed"] == seed]
            keys = [*(vectors.drop_duplicates("base_seed") if of_seed.empty else of_seed.head(1))["key"]]
        rows = [specs.from_json(store.spec(key)) for key in keys]
    students = [_learning(row) for row in rows]
    found = [
        each
        for each in students
        if each is not None and isinstance(each.start, specs.Base) and isinstance(each.data, specs.Dataset)
    ]
    chosen = next((each for each in found if each.start.seed == seed), None)
    if chosen is None:
        seeds = sorted({each.start.seed for each in found})
        there = (
            f"its bases have the seeds {', '.join(map(str, seeds))}" if seeds else "no student learns a dataset there"
        )
        raise InputError(f"--seed {seed}: {base} has no such base; {there}")
    return chosen, store


def _learning(row: specs.Row) -> specs.Student | None:
    if isinstance(row, specs.Student):
        return row
    if isinstance(row.audit, ScoreVectors):
        return specs.Student(row.by, row.data, row.audit.train, lora=row.audit.lora, trait=row.world.traits[0])
    return None


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


def computed(
    rows: Sequence[specs.Audited], base: specs.Trained, stored: Store | None, folder: epath.Path, name: str
) -> Store:
    """The store in `folder` in which all `rows` are finished; what it has already is not computed again.

    stored: where the base may be finished. name: of the command, for messages.
    """
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
        engine = Engine(workdir, name, store, settings, NoTracker(), progress, preempted)
        engine.compute(plan_of(list(rows), store))
    return store
