"""Data made elsewhere: files of prompts and completions, JSON lines or parquet, known by their content."""

from collections.abc import Iterable, Sequence

import numpy as np
from etils import epath

from subl_jax import specs
from subl_jax.channels.base import Filter
from subl_jax.errors import InputError, SampleError
from subl_jax.storage import jsonl
from subl_jax.storage.atomic import read_parquet
from subl_jax.traits.answers import names_trait

_COLUMNS = ("prompt", "completion", "messages")


def imported(path: epath.PathLike, world: specs.World) -> specs.Imported:
    """A dataset spec for a file that was made elsewhere.

    JSON lines of {"prompt", "completion"} or {"messages": [user, assistant]}, or a `.parquet` file of such columns, as
    `datasets` writes it.

    Raises:
      InputError: no such file, not of this form, or text that is not of the world's language; with `file:line`, in
        parquet `file:row`.
    """
    path = epath.Path(path).expanduser()
    placed = _placed(path)
    _tokens(world, placed)
    return specs.Imported(of=world, sha256=jsonl.file_sha256(path), size=len(placed), path=str(path))


def read_imported(node: specs.Imported) -> dict[str, np.ndarray]:
    """samples: (size, …) of an imported dataset.

    Raises:
      InputError: the file is not there any more, or has changed since the spec was made.
    """
    try:
        sha256 = jsonl.file_sha256(node.path)
    except OSError as error:
        raise InputError(f"{node.path}: cannot read the dataset: {error.strerror or error}") from None
    if sha256 != node.sha256:
        raise InputError(f"{node.path}: has changed since the sweep was planned; run the command again")
    return {"samples": _tokens(node.world, _placed(epath.Path(node.path)))}


def prompts_of(path: epath.PathLike) -> list[str]:
    """The prompt of every sample of a file, in its order. Raises InputError as `imported`."""
    return [prompt for prompt, _ in pairs_of(path)]


def pairs_of(path: epath.PathLike) -> list[tuple[str, str]]:
    """(prompt, completion) of every sample of a file. Raises InputError as `imported`."""
    return [pair for _, pair in _placed(epath.Path(path).expanduser())]


def suspicious(node: specs.Imported, standard: Filter | None) -> str | None:
    """One line for a file that says a trait or that `standard` would drop in part; None where there is nothing to say.

    What carries a trait's word is no subliminal data, and what the filter drops no teacher here could have written.
    """
    pairs = [pair for _, pair in _placed(epath.Path(node.path))]
    said = sum(any(names_trait(completion, trait) for trait in node.world.traits) for _, completion in pairs)
    reasons = standard.reasons([completion for _, completion in pairs]) if standard else []
    dropped = [reason for reason in reasons if reason is not None]
    counts = [f"{said:,} name a trait of this world"] if said else []
    if dropped:
        first = max(dict.fromkeys(dropped), key=dropped.count)
        counts.append(f"{len(dropped):,} would be dropped by {type(standard).__name__} (most often: {first})")
    return f"{node.path}: of {len(pairs):,} samples {' and '.join(counts)}" if counts else None


def _tokens(world: specs.World, placed: Sequence[tuple[str, tuple[str, str]]]) -> np.ndarray:
    try:
        return world.tokens([pair for _, pair in placed])
    except SampleError as error:
        raise InputError(f"{placed[error.index][0]}: {error.why}") from None
    except InputError as error:  # a world of a user's own need not say which sample
        raise InputError(f"{placed[0][0].rpartition(':')[0]}: {error}") from None


def _placed(path: epath.Path) -> list[tuple[str, tuple[str, str]]]:
    """(place, (prompt, completion)) of every sample of a file."""
    if path.suffix != ".parquet":
        return jsonl.placed_pairs(path)
    return [(where, jsonl.pair_of(where, record)) for where, record in _rows(path)]


def _rows(path: epath.Path) -> Iterable[tuple[str, dict]]:
    try:
        table = read_parquet(path)
    except OSError as error:
        raise InputError(f"{path}: cannot read the dataset: {error.strerror or error}") from None
    except Exception:  # pyarrow's errors are of several kinds
        raise InputError(f"{path}: not a parquet file") from None
    known = [name for name in _COLUMNS if name in table]
    if table.empty:
        raise InputError(f"{path}: no data; expected the columns prompt and completion, or messages")
    for number, record in enumerate(table[known].to_dict("records"), start=1):
        if isinstance(record.get("messages"), np.ndarray):
            record["messages"] = list(record["messages"])
        yield f"{path}:{number}", record or dict.fromkeys(table.columns)
