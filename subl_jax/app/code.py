"""The sweep file and what it imports from beside it, kept with the results as it was when they were made."""

import pathlib
import sys
import types
from collections.abc import Mapping

from etils import epath

from subl_jax.storage.atomic import write_bytes_atomic
from subl_jax.storage.retrying import patiently

FOLDER = "code"


def code_of(file: pathlib.Path) -> dict[str, bytes]:
    """Path relative to its folder → content, of a sweep file that has run and of the modules it has from there.

    Modules of packages beside it are among them, but for those of this package, whose revision `sweep.json` has.
    """
    folder = file.absolute().parent
    found = {file.name: file.read_bytes()}
    for name, module in sorted(sys.modules.items()):
        own = isinstance(module, types.ModuleType) and name.partition(".")[0] not in ("__main__", "subl_jax")
        path = pathlib.Path((vars(module).get("__file__") if own else None) or "")
        if path.suffix == ".py" and path.is_file() and folder == _root(name, path.absolute()):
            found[path.absolute().relative_to(folder).as_posix()] = path.read_bytes()
    return found


def write_code(workdir: epath.Path, code: Mapping[str, bytes]) -> None:
    """Replaces that of an earlier sweep. Raises StorageError."""
    patiently(lambda: (workdir / FOLDER).rmtree(missing_ok=True))
    for name, content in code.items():
        path = workdir / FOLDER / name
        patiently(lambda path=path: path.parent.mkdir(parents=True, exist_ok=True))
        write_bytes_atomic(path, content)


def _root(name: str, path: pathlib.Path) -> pathlib.Path | None:
    """Where a module's package lies, from the module's dotted name and its file."""
    above = name.count(".") + (path.name == "__init__.py")
    return path.parents[above] if above < len(path.parents) else None
