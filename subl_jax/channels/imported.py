"""Data made elsewhere: JSON lines of prompts and completions, known by their content."""

import numpy as np
from etils import epath

from subl_jax import specs
from subl_jax.errors import InputError
from subl_jax.storage import jsonl


def imported(path: epath.PathLike, world: specs.World) -> specs.Imported:
    """A dataset spec for a JSONL file of {"prompt", "completion"} that was made elsewhere.

    Raises:
      InputError: no such file, not JSONL of this form, or text that is not of the world's language.
    """
    pairs = jsonl.read_jsonl(path)
    try:
        world.tokens(pairs)
    except InputError as error:
        raise InputError(f"{path}: {error}") from None
    return specs.Imported(of=world, sha256=jsonl.file_sha256(path), size=len(pairs), path=str(path))


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
    return {"samples": node.world.tokens(jsonl.read_jsonl(node.path))}
