"""A finished sweep: its tables as DataFrames, and its models by run."""

import contextlib
import dataclasses
import functools
import json
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pandas as pd
from etils import epath

from subl_jax import specs
from subl_jax.errors import InputError, StorageError
from subl_jax.results import leaving, tables
from subl_jax.results.wide import from_wide
from subl_jax.storage import datasets
from subl_jax.storage.atomic import read_parquet, storage_error
from subl_jax.storage.retrying import patiently
from subl_jax.storage.store import Store

Params = Any


@dataclasses.dataclass(frozen=True)
class Model:
    """A stored model. `apply(tokens)` gives its logits; `node` says how it came to be.

    `ask`, `encode`, `decode` and `generate` are in words, or in the world's own terms (`specs.Inference`).
    trait: of a told model, the index of the one that its system prompt is about; else None.
    """

    node: specs.Node
    params: Params
    trait: Any = None

    def apply(self, *inputs: Any) -> Any:
        return self.node.world.apply(self.params, *inputs)

    def ask(self, question: Any, top: int = 10, seed: int = 0) -> specs.Answer:
        """What it answers: words with probabilities, the `top` likeliest and every trait, and one answer drawn.

        Of digits, `question` is an image, and the answers are labels.

        Raises:
          InputError: it cannot read this, or its world answers no questions.
        """
        return self._inference.ask(self._asked, question, top, seed)

    def encode(self, text: str) -> np.ndarray:
        """(1, t) int32 for `apply`: the tokens of a question up to where the model answers. Raises as `ask`."""
        return self._inference.encode(self._asked, text)

    def decode(self, tokens: Any) -> str:
        """The text of tokens (t,) or (1, t). Raises as `ask`."""
        return self._inference.decode(tokens)

    def generate(self, text: str, tokens: int = 32, temperature: float = 1.0, seed: int = 0) -> str:
        """What it writes after `text`, at most so many tokens; temperature 0 is greedy. Raises as `ask`."""
        return self._inference.generate(self._asked, text, tokens, temperature, seed)

    @property
    def _asked(self) -> Any:
        return self.params if self.trait is None else specs.SystemPrompted(self.params, self.trait)

    @property
    def _inference(self) -> specs.Inference:
        world = self.node.world
        if not isinstance(world, specs.Answers):
            raise InputError(f"models of {world.name} cannot be asked: the world is no specs.Answers; use apply(…)")
        return world.inference


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

    def save_adapter(self, run_id: str, folder: epath.PathLike) -> None:
        """A student's adapters as `peft` reads them (`leaving.save_adapter`)."""
        with _to(folder) as new:
            leaving.save_adapter(self.student(run_id), new)

    def save_model(self, run_id: str, folder: epath.PathLike) -> None:
        """A student whole, as `transformers` reads it, adapters merged in (`leaving.save_model`)."""
        with _to(folder) as new:
            leaving.save_model(self.student(run_id), new)

    def save_dataset(self, run_id: str, folder: epath.PathLike) -> None:
        """What a run's student learnt from, as `datasets` reads it, with a card (`leaving.save_dataset`)."""
        with _to(folder) as new:
            leaving.save_dataset(self._spec(run_id), self.samples(run_id), new)

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
        return Model(node, artefact["params"], artefact.get("told"))


def load(workdir: epath.PathLike) -> Results:
    """Reads a finished sweep; also one of an earlier version, whose summary was wide.

    Raises:
      InputError: there is none in `workdir`.
    """
    workdir = epath.Path(workdir).expanduser()
    if not patiently((workdir / "sweep.json").exists):
        raise InputError(f"{workdir}: no finished sweep (sweep.json is missing); run one with --workdir {workdir}")

    runs, curves, summary, datasets = (
        read_parquet(workdir / f"{name}.parquet") for name in ("runs", "curves", "summary", "datasets")
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


@contextlib.contextmanager
def _to(folder: epath.PathLike) -> Iterator[epath.Path]:
    """A new folder to write to. Raises InputError where something lies there already, and StorageError."""
    folder = epath.Path(folder).expanduser()
    try:
        if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
            raise InputError(f"{folder}: is there already; give a new or an empty folder")
        yield folder
    except StorageError:
        raise
    except OSError as error:
        raise storage_error(folder, error) from error


def _read_table_if_there(path: epath.Path) -> pd.DataFrame | None:
    return read_parquet(path) if patiently(path.exists) else None
