"""A finished sweep: its tables as DataFrames, and its models by run."""

import dataclasses
import functools
import json
from collections.abc import Callable
from typing import Any

import pandas as pd
from etils import epath

from subl_jax import specs
from subl_jax.errors import InputError
from subl_jax.results import tables
from subl_jax.results.wide import from_wide
from subl_jax.storage import datasets
from subl_jax.storage.retrying import patiently
from subl_jax.storage.store import Store

Params = Any


@dataclasses.dataclass(frozen=True)
class Model:
    """A stored model. `apply(tokens)` gives its logits; `node` says how it came to be."""

    node: specs.Node
    params: Params

    def apply(self, *inputs: Any) -> Any:
        return self.node.world.apply(self.params, *inputs)


@dataclasses.dataclass(frozen=True)
class Results:
    """The results contract of a workdir (docs/results.md)."""

    workdir: epath.Path
    runs: pd.DataFrame
    curves: pd.DataFrame
    summary: pd.DataFrame
    comparisons: pd.DataFrame
    datasets: pd.DataFrame
    audits: pd.DataFrame
    sweep: dict[str, Any]

    @functools.cached_property
    def store(self) -> Store:
        return Store(self.workdir, readonly=True)

    def student(self, run_id: str) -> Model:
        """The student of a row of `runs`.

        Raises:
          InputError: no such run, or its model is not stored.
        """
        return self._model(self._spec(run_id))

    def teacher(self, run_id: str) -> Model:
        """The model that wrote the data of a run (for a control, the base). Raises as `student`."""
        return self._model(self._of(run_id, specs.source, "its data was made elsewhere"))

    def base(self, run_id: str) -> Model:
        """The base that a run's student started from. Raises as `student`."""
        return self._model(self._of(run_id, lambda student: specs.origin(student.start), "it has no base"))

    def samples(self, run_id: str) -> pd.DataFrame:
        """What the teacher of a run wrote: prompt, completion, kept, why. Raises as `student`."""
        key = getattr(self._spec(run_id).data, "key", "")
        try:
            return datasets.read(self.workdir, key)
        except InputError as error:
            raise InputError(f"run {run_id}: {error}") from None

    def _spec(self, run_id: str) -> specs.Student:
        rows = self.runs[self.runs.run_id == run_id]
        if rows.empty:
            raise InputError(f"no run {run_id!r} in {self.workdir}; see the run_id column of runs.parquet")
        return self._stored(rows.iloc[0].key)

    def _of(self, run_id: str, parent: Callable[[specs.Student], specs.Node | None], without: str) -> specs.Node:
        node = parent(self._spec(run_id))
        if node is None:
            raise InputError(f"run {run_id}: {without}")
        return node

    def _stored(self, key: str) -> Any:
        try:
            return specs.from_json(self.store.spec(key))
        except KeyError:
            line = f"{self.workdir} has no artefact {key[:12]}…: it was pruned, or is damaged"
            raise InputError(line) from None

    def _model(self, node: specs.Node) -> Model:
        self._stored(node.key)
        artefact = self.store.get(node.key)
        if artefact is None:
            kind = type(node).__name__.lower()
            line = f"{self.workdir}: parameters of {kind} {node.key[:12]}… were not kept (config.engine.keep, --prune)"
            raise InputError(f"{line}; compute it again in another --workdir with keep=all")
        return Model(node, artefact["params"])


def load(workdir: epath.PathLike) -> Results:
    """Reads a finished sweep; also one of an earlier version, whose summary was wide.

    Raises:
      InputError: there is none in `workdir`.
    """
    workdir = epath.Path(workdir).expanduser()
    if not patiently((workdir / "sweep.json").exists):
        raise InputError(f"{workdir}: no finished sweep (sweep.json is missing); run one with --workdir {workdir}")

    runs, curves, summary, datasets = (
        _read_table(workdir / f"{name}.parquet") for name in ("runs", "curves", "summary", "datasets")
    )
    comparisons = _read_table_if_there(workdir / "comparisons.parquet")
    if comparisons is None:
        summary, comparisons = from_wide(summary)
    audits = _read_table_if_there(workdir / "audits.parquet")
    return Results(
        workdir=workdir,
        runs=runs,
        curves=curves,
        summary=summary,
        comparisons=comparisons,
        datasets=datasets,
        audits=pd.DataFrame(columns=list(tables.OF_AUDITS)) if audits is None else audits,
        sweep=json.loads(patiently((workdir / "sweep.json").read_bytes)),
    )


def _read_table_if_there(path: epath.Path) -> pd.DataFrame | None:
    return _read_table(path) if patiently(path.exists) else None


def _read_table(path: epath.Path) -> pd.DataFrame:
    def read() -> pd.DataFrame:
        with path.open("rb") as file:
            return pd.read_parquet(file)

    return patiently(read)
