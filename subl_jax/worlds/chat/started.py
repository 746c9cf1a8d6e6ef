"""Bases that start from somebody's `peft` adapter: merged into the weights, or live, as what students train on."""

import functools
import hashlib
from typing import Any

import numpy as np
from etils import epath

from subl_jax.errors import InputError
from subl_jax.pretrained import adapters, names, weights
from subl_jax.storage import jsonl
from subl_jax.worlds.chat import publishing

_FILES = ("adapter_config.json", "adapter_model.safetensors")


def sha256_of(folder: str) -> str:
    """Of an adapter's content. Raises InputError where a file is missing."""
    found = hashlib.sha256()
    for name in _FILES:
        path = epath.Path(folder).expanduser() / name
        try:
            found.update(jsonl.file_sha256(path).encode())
        except OSError as error:
            raise InputError(f"{path}: cannot be read: {error.strerror or error}; expected a folder of peft") from None
    return found.hexdigest()


def check(world: Any) -> None:
    """Raises InputError where the adapter does not fit the checkpoint, or cannot be trained on though it is to be."""
    if world.adapter:
        adapter_of(world)
    if world.adapter_live:
        if not world.adapter:
            raise InputError("Pretrained.adapter_live: which adapter? give adapter=FOLDER")
        world.adapter_lora  # noqa: B018


def adapter_of(world: Any) -> adapters.Adapter:
    """Raises InputError where it does not fit, or has changed since the sweep was planned."""
    if sha256_of(world.adapter) != world.adapter_sha256:
        raise InputError(f"{world.adapter}: has changed since the sweep was planned; run the command again")
    return _read(world.adapter, world.adapter_sha256, world.model, world.config)


@functools.lru_cache(maxsize=4)
def _read(folder: str, sha256: str, model: str, config: Any) -> adapters.Adapter:
    """`sha256` is its content's, so that a changed one is not mistaken for it."""
    kind, _ = publishing.family_of(weights.open_checkpoint(model))
    return adapters.read(epath.Path(folder).expanduser(), names.names_of(kind), config)


def merged(world: Any, path: str, array: np.ndarray) -> np.ndarray:
    """The weights of `path` with what a merged adapter adds."""
    if not world.adapter or world.adapter_live or not path.startswith("layers/"):
        return array
    module = path.removeprefix("layers/").removesuffix("/kernel")
    adapter = adapter_of(world)
    for name, site in world.config.adapter_sites().items():
        if "/".join(site.path) == module and name in adapter.a:
            added = adapter.a[name] @ (adapter.scales[name][:, None, None] * adapter.b[name])
            return (array.astype(np.float32) + added).astype(array.dtype)
    return array
