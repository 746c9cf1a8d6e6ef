"""What a container may use of its machine: the quota of CPUs and the limit of memory of its control groups."""

import os
import pathlib
from collections.abc import Iterator

_CGROUPS = pathlib.Path("/sys/fs/cgroup")
_OF_PROCESS = pathlib.Path("/proc/self/cgroup")


def cpus(root: pathlib.Path = _CGROUPS, of_process: pathlib.Path = _OF_PROCESS) -> float | None:
    """How many CPUs' time the quota allows, as in `docker run --cpus=2.5`; None without a quota."""
    quotas = []
    for folder in _folders(root, of_process, "cpu"):
        quota, period = [*_words(folder / "cpu.max"), "", ""][:2]  # version 2: one file
        if not quota:
            quota, period = (" ".join(_words(folder / f"cpu.cfs_{name}_us")) for name in ("quota", "period"))
        if quota.isdigit() and period.isdigit() and int(quota) and int(period):  # "max" and -1 are no quota
            quotas.append(int(quota) / int(period))
    return min(quotas, default=None)


def memory_left(root: pathlib.Path = _CGROUPS, of_process: pathlib.Path = _OF_PROCESS) -> int | None:
    """Bytes until the process is killed for its memory; None without a limit.

    Files that the system has cached count as used there, but are let go before anything is killed.
    """
    left = []
    for folder in _folders(root, of_process, "memory"):
        limit, used = _number(folder / "memory.max"), _number(folder / "memory.current")
        if limit is None or used is None:
            limit, used = (_number(folder / f"memory.{name}_in_bytes") for name in ("limit", "usage"))
        if limit is not None and used is not None:
            # Without a limit version 1 says 2^63, rounded to pages: more than any machine has.
            left.append(max(0, limit - max(0, used - _cached(folder))))
    return min(left, default=None)


def _folders(root: pathlib.Path, of_process: pathlib.Path, controller: str) -> Iterator[pathlib.Path]:
    """The process's own group and all around it: each may have a limit. Version 1 has a tree for each controller."""
    try:
        lines = of_process.read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    for number, names, path in (line.split(":", 2) for line in lines if line.count(":") >= 2):
        if names and controller not in names.split(","):
            continue
        # A container often sees its own group as the root of the tree, under the path that it has outside.
        trees = [root] if number == "0" else [root / controller, root / names]
        group = pathlib.PurePosixPath(path).relative_to("/") if path.startswith("/") else pathlib.PurePosixPath()
        for tree in trees:
            yield from (tree / part for part in (group, *group.parents))


def _cached(folder: pathlib.Path) -> int:
    """Bytes of files that nobody has read lately."""
    words = _words(folder / "memory.stat")
    stats = dict(zip(words[::2], words[1::2], strict=False))
    return int(stats.get("total_inactive_file", stats.get("inactive_file", "0")))


def _number(path: pathlib.Path) -> int | None:
    words = _words(path)
    return int(words[0]) if words and words[0].isdigit() else None


def _words(path: pathlib.Path) -> list[str]:
    try:
        return path.read_text(encoding="utf-8").split() if os.access(path, os.R_OK) else []
    except OSError:
        return []
