"""Where W&B's runs go, and what they may be called: project and entity, ids of a workdir, names that W&B takes."""

import hashlib
import os
import pathlib
import tempfile
import uuid
from collections.abc import Mapping
from typing import NamedTuple

from etils import epath

from subl_jax.errors import InputError
from subl_jax.storage.atomic import write_bytes_atomic
from subl_jax.storage.retrying import patiently

DEFAULT_PROJECT = "subl_jax"
# In characters.
LONGEST_PROJECT = 128
LONGEST_NAME = 128
LONGEST_TAG = 64

_REFUSED = "/\\#?%:"
_MODES = {
    "online": "online",
    "run": "online",
    "shared": "online",
    "offline": "offline",
    "dryrun": "offline",
    "disabled": "disabled",
}
_YES = ("1", "true", "t", "yes", "y", "on")


class Place(NamedTuple):
    """A W&B project; the entity is the client's own default where it is None."""

    project: str
    entity: str | None = None


def place(project: str, environ: Mapping[str, str], where: str = "project") -> Place:
    """The project that is meant by `project` ("" for WANDB_PROJECT, or else subl_jax) and WANDB_ENTITY.

    Either may be PROJECT or ENTITY/PROJECT; an entity given so goes before WANDB_ENTITY. `where` names the setting.

    Raises:
      InputError: W&B would refuse the name.
    """
    if not project and environ.get("WANDB_PROJECT"):
        project, where = environ["WANDB_PROJECT"], "WANDB_PROJECT"
    project = project or DEFAULT_PROJECT
    entity, slash, name = project.rpartition("/")
    found = sorted({char for char in entity + name if char in _REFUSED})
    fault = (
        "has no name behind the /"
        if slash and not name
        else "has no entity before the /"
        if slash and not entity
        else f"holds {' '.join(found)}, which W&B refuses in names"
        if found
        else "is empty"
        if not name.strip()
        else f"is longer than the {LONGEST_PROJECT} characters that W&B takes"
        if len(name) > LONGEST_PROJECT
        else ""
    )
    if fault:
        raise InputError(f"{where} = {project!r}: {fault}; give PROJECT or ENTITY/PROJECT")
    return Place(name, entity or environ.get("WANDB_ENTITY") or None)


def mode(environ: Mapping[str, str]) -> str | None:
    """ "online", "offline" or "disabled" as WANDB_MODE and WANDB_DISABLED say; None where they say nothing.

    Raises:
      InputError: a WANDB_MODE that W&B does not have.
    """
    if environ.get("WANDB_DISABLED", "").strip().lower() in _YES:
        return "disabled"
    said = environ.get("WANDB_MODE", "")
    if said and said not in _MODES:
        raise InputError(f"WANDB_MODE = {said!r}: one of {', '.join(_MODES)}")
    return _MODES.get(said)


def local_folder(workdir: str | os.PathLike[str]) -> pathlib.Path:
    """Where W&B may write: `workdir` itself, or for remote storage a folder of this machine that belongs to it."""
    path = os.fspath(workdir)
    if "://" not in path:
        return pathlib.Path(path)
    return pathlib.Path(tempfile.gettempdir()) / f"subl_jax-{hashlib.sha256(path.encode()).hexdigest()[:12]}"


def files_folder(workdir: str | os.PathLike[str], environ: Mapping[str, str]) -> pathlib.Path:
    """The folder whose `wandb` holds the client's files: WANDB_DIR where it is set, or else the workdir's own."""
    given = environ.get("WANDB_DIR")
    return pathlib.Path(given).expanduser().absolute() if given else local_folder(workdir)


def workdir_token(workdir: epath.PathLike) -> str:
    """Eight hexadecimal digits that belong to a workdir, drawn once and kept in it.

    They end every W&B id: two workdirs, or two people, that compute the same students have runs of their own, and a
    command that is run again goes on with its runs.
    """
    path = epath.Path(workdir) / "wandb" / "workdir-id.txt"
    if patiently(path.exists):
        found = patiently(path.read_text).strip()
        if found:
            return found
    drawn = uuid.uuid4().hex[:8]
    patiently(lambda: path.parent.mkdir(parents=True, exist_ok=True))
    write_bytes_atomic(path, f"{drawn}\n".encode())
    return drawn


def fitting(name: str, longest: int = LONGEST_NAME) -> str:
    """The name, cut to what W&B takes; names that differ stay different."""
    if len(name) <= longest:
        return name
    return f"{name[: longest - 9]}~{hashlib.sha256(name.encode()).hexdigest()[:8]}"
