"""Removes from a workdir what a sweep does not need any more, and says what and how much."""

import contextlib
from collections.abc import Callable, Iterator, Sequence

from etils import epath

from subl_jax import specs
from subl_jax.engine.plan import make_plan
from subl_jax.engine.retention import awaited, droppable
from subl_jax.errors import InputError
from subl_jax.storage.retrying import patiently
from subl_jax.storage.store import Store, lock


def prune(
    students: Sequence[specs.Student],
    workdir: epath.PathLike,
    keep: str = "all",
    *,
    dry_run: bool = False,
    say: Callable[[str], None] = print,
) -> int:
    """Removes nodes that `students` do not build on, and parameters that `keep` does not ask for (`Settings.keep`).

    What is stored a batch at a time goes a batch at a time: one that holds something needed stays whole.

    Args:
      dry_run: only say what would be removed.

    Returns:
      How many bytes that frees.

    Raises:
      InputError: there is no such workdir, or a sweep is running in it.
      StorageError: a batch could not be written without its parameters.
    """
    workdir = epath.Path(workdir).expanduser()
    if not patiently((workdir / "artifacts").exists):
        raise InputError(f"--workdir {workdir}: nothing is stored there; give the --workdir of a sweep")
    with contextlib.nullcontext() if dry_run else lock(workdir):
        store = Store(workdir, warn=say, readonly=dry_run)
        needed = {node.key for group in make_plan(students, ()).groups for node in group.nodes}
        plan = make_plan(students, store.done(), store.bare())
        strangers = store.strangers(needed)
        stripped = store.strippable(droppable(plan, keep) - awaited(plan).keys())
        files = list(_files_of_others(workdir, needed))
        checkpoints = [] if plan.groups else list(_tree(workdir / "checkpoints"))
        in_files, in_checkpoints = _bytes(files), _bytes(checkpoints)
        if not dry_run:
            for id in strangers:
                store.remove(id)
            for id in stripped:
                stripped[id] -= store.strip(id)["bytes"]  # its curves stay
            for path in files:
                patiently(lambda path=path: path.unlink(missing_ok=True))
            if checkpoints:
                patiently(lambda: (workdir / "checkpoints").rmtree(missing_ok=True))
    total, done = 0, "would remove" if dry_run else "removed"
    for count, what, size in (
        (len(strangers), "batches that this sweep does not need", sum(strangers.values())),
        (len(stripped), f"batches' parameters (keep={keep})", sum(stripped.values())),
        (len(files), "files of datasets that this sweep does not need", in_files),
        (len(checkpoints), "files of checkpoints", in_checkpoints),
    ):
        if count:
            say(f"{done} {count:,} {what}: {size:,} bytes")
        total += size
    say(f"{done} {total:,} bytes in all")
    return total


def _files_of_others(workdir: epath.Path, needed: set[str]) -> Iterator[epath.Path]:
    for path in _tree(workdir / "datasets"):
        if path.suffix in (".parquet", ".jsonl") and path.stem not in needed:
            yield path


def _tree(folder: epath.Path) -> Iterator[epath.Path]:
    try:
        paths = patiently(lambda: list(folder.iterdir()))
    except FileNotFoundError:
        return
    for path in paths:
        if patiently(path.is_dir):
            yield from _tree(path)
        else:
            yield path


def _bytes(paths: Sequence[epath.Path]) -> int:
    return sum(patiently(path.stat).length for path in paths)
