"""Adapters as the `peft` library keeps them: a folder with `adapter_config.json` and `adapter_model.safetensors`.

There a projection gives W x + lora_alpha / r * B A x, with A (r, inputs) and B (outputs, r): ours, transposed. Where a
family has query, key and value in one weight, their adapters become one of that weight, of their ranks together.
"""

import dataclasses
import json
import pathlib
import re
from typing import Any

import jax.numpy as jnp
import numpy as np
from etils import epath

from subl_jax.errors import InputError
from subl_jax.models import transformer
from subl_jax.pretrained.folders import ADAPTER, read_json
from subl_jax.pretrained.names import Names
from subl_jax.pretrained.publishing import write_safetensors
from subl_jax.specs import PROJECTIONS, Lora
from subl_jax.storage.atomic import write_bytes_atomic

_PREFIX = "base_model.model."


def save(folder: epath.Path, names: Names, config: transformer.Config, params: Any, lora: Lora, base: str) -> None:
    """Writes the adapters of `params` ({"lora", "scale"}). base: the checkpoint that they are on.

    Raises:
      StorageError: a file could not be written.
    """
    first, last = lora.first_layer % config.layers, lora.last_layer % config.layers
    layers = range(first, last + 1)
    parts = _parts(names, config, lora)
    tensors: dict[str, np.ndarray] = {}
    for part, modules in parts.items():
        for i in layers:
            a, b = _of_layer(names, config, params["lora"], modules, lora.rank, i)
            stem = f"{_PREFIX}{names.layer.format(i=i)}{part}"
            tensors[f"{stem}.lora_A.weight"], tensors[f"{stem}.lora_B.weight"] = a, b
    several = {part: len(modules) for part, modules in parts.items() if len(modules) > 1}
    whole = len(layers) == config.layers
    targets: list[str] | str = sorted(parts)
    if names.beside_others:  # a pattern, as a vision tower has projections of the same names
        numbers = "|".join(map(str, layers))
        stem = re.escape(names.layer).replace(r"\{i\}", f"(?:{numbers})")
        targets, whole = f"{stem}(?:{'|'.join(map(re.escape, targets))})", True
    described = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": base,
        "r": lora.rank,
        "lora_alpha": _number(lora.alpha),
        "target_modules": targets,
        "rank_pattern": {part: n * lora.rank for part, n in several.items()},
        "alpha_pattern": {part: _number(n * lora.alpha) for part, n in several.items()},
        "layers_to_transform": None if whole else list(layers),
        "layers_pattern": None if whole else names.layers_pattern(),
        "fan_in_fan_out": not names.transposed,
        "lora_dropout": 0.0,
        "bias": "none",
        "inference_mode": True,
    }
    folder.mkdir(parents=True, exist_ok=True)
    write_safetensors(folder / "adapter_model.safetensors", tensors)
    write_bytes_atomic(folder / ADAPTER, json.dumps(described, indent=2).encode())


# Ways to start that change the base's own weights, so that the adapter alone is not the model.
_CHANGING = ("pissa", "olora", "loftq", "corda")


@dataclasses.dataclass(frozen=True)
class Adapter:
    """An adapter that was read, by module: a (layers, inputs, rank), b (layers, rank, outputs), scales (layers,), and
    ranks (layers,), 0 for layers without one. `folder` is for messages."""

    folder: str
    a: dict[str, np.ndarray]
    b: dict[str, np.ndarray]
    scales: dict[str, np.ndarray]
    ranks: dict[str, np.ndarray]

    def spec(self) -> Lora:
        """As the adapter that training goes on with.

        Raises:
          InputError: ranks, scales or layers differ between modules, which one spec cannot say.
        """
        ranks = np.stack(list(self.ranks.values()))
        scales = np.stack(list(self.scales.values()))
        used = np.nonzero(ranks.any(axis=0))[0]
        rank, first, last = int(ranks.max()), int(used[0]), int(used[-1])
        within = (slice(None), slice(first, last + 1))
        if (ranks[within] != rank).any() or np.ptp(scales[within]) > 0:
            raise InputError(
                f"{self.folder}: ranks, scales or layers differ between its modules, so that it cannot be trained on; "
                "leave adapter_live out, and it is merged"
            )
        alpha = float(scales[0, first]) * rank
        layers = {} if len(used) == ranks.shape[1] else {"first_layer": first, "last_layer": last}
        modules = tuple(name for name in PROJECTIONS if name in self.a)
        return Lora(modules=modules, max_rank=rank, rank=rank, alpha=alpha, **layers)

    def params(self) -> dict[str, Any]:
        """As `lora.init` gives them. Raises as `spec`."""
        spec = self.spec()
        return {
            "lora": {name: {"a": jnp.asarray(self.a[name]), "b": jnp.asarray(self.b[name])} for name in spec.modules},
            "scale": jnp.float32(spec.alpha) / spec.rank,
        }


def read(folder: epath.Path, names: Names, config: transformer.Config) -> Adapter:
    """An adapter of `peft` for a model of this family and these sizes.

    Raises:
      InputError: it is no plain LoRA, or a tensor has no place in this model.
    """
    described = _described(folder)
    tensors = _tensors(folder / "adapter_model.safetensors")
    places = {}
    for name, site in config.adapter_sites().items():
        part = names.part("/".join(site.path))
        for i in range(config.layers if part else 0):
            places.setdefault(f"{names.layer.format(i=i)}{part}", []).append((i, name))
    found: dict[str, dict[int, tuple[np.ndarray, np.ndarray, float]]] = {}
    for stem in sorted({key.rpartition(".lora_")[0] for key in tensors}):
        path = stem.removeprefix(_PREFIX)
        if path not in places or {f"{stem}.lora_{each}.weight" for each in "AB"} - tensors.keys():
            raise InputError(f"{folder}: has an adapter of {path!r}, which this model has no place for")
        low, high = (tensors[f"{stem}.lora_{each}.weight"].astype(np.float32) for each in "AB")
        scale = _scale(described, path, len(low))
        _take(found, folder, names, config, places[path], low, high, scale)
    if not found:
        raise InputError(f"{folder / 'adapter_model.safetensors'}: holds no adapters")
    return _stacked(str(folder), config, found)


def _take(
    found: dict,
    folder: epath.Path,
    names: Names,
    config: transformer.Config,
    places: Any,
    low: Any,
    high: Any,
    scale: Any,
) -> None:
    """Puts one pair of matrices to the modules of ours that it is of; a fused one to those that it changes."""
    sites = config.adapter_sites()
    outputs = sum(sites[name].outputs for _, name in places)
    inputs = sites[places[0][1]].inputs
    if low.ndim != 2 or high.shape != (outputs, len(low)) or low.shape[1] != inputs:
        raise InputError(
            f"{folder}: an adapter of {places[0][1]} has shapes {low.shape} and {high.shape}; this model has "
            f"{inputs} inputs and {outputs} outputs there"
        )
    kernel = high.T
    if len(places) == 1:
        found.setdefault(places[0][1], {})[places[0][0]] = (low.T, kernel, scale)
        return
    for (layer, name), columns in zip(places, names.apart(config), strict=True):
        own = kernel[:, columns]
        used = own.any(axis=1)  # of a fused adapter made of several, the ranks of this one
        if used.any():
            found.setdefault(name, {})[layer] = (low.T[:, used], own[used], scale)


def _stacked(folder: str, config: transformer.Config, found: Any) -> Adapter:
    a, b, scales, ranks = {}, {}, {}, {}
    sites = config.adapter_sites()
    for name, layers in found.items():
        rank = max(low.shape[1] for low, _, _ in layers.values())
        a[name] = np.zeros((config.layers, sites[name].inputs, rank), np.float32)
        b[name] = np.zeros((config.layers, rank, sites[name].outputs), np.float32)
        scales[name], ranks[name] = np.zeros(config.layers, np.float32), np.zeros(config.layers, int)
        for i, (low, high, scale) in layers.items():
            own = low.shape[1]
            a[name][i, :, :own], b[name][i, :own] = low, high
            scales[name][i], ranks[name][i] = scale, own
    return Adapter(folder, a, b, scales, ranks)


def _described(folder: epath.Path) -> dict[str, Any]:
    path = folder / ADAPTER
    described = read_json(pathlib.Path(path))
    start = str(described.get("init_lora_weights", "")).lower()
    refused = {
        "peft_type": described.get("peft_type") != "LORA",
        "use_dora": bool(described.get("use_dora")),
        "bias": described.get("bias", "none") != "none",
        "modules_to_save": bool(described.get("modules_to_save")),
        "init_lora_weights": start.startswith(_CHANGING),
    }
    for name, wrong in refused.items():
        if wrong:
            raise InputError(
                f"{path}: {name} = {described.get(name)!r}: only plain LoRA adapters are read; merge it first"
            )
    return described


def _tensors(path: epath.Path) -> dict[str, np.ndarray]:
    from safetensors import SafetensorError
    from safetensors.numpy import load_file

    try:
        return load_file(path)
    except (SafetensorError, OSError, ValueError) as error:
        raise InputError(f"{path}: is cut short or not a safetensors file: {str(error).splitlines()[0]}") from None


def _scale(described: dict[str, Any], path: str, rank: int) -> float:
    """What its B A is multiplied with. Patterns name the end of a path, or are expressions for it."""

    def given(name: str, otherwise: float) -> float:
        for pattern, value in (described.get(name) or {}).items():
            if re.match(rf"(.*\.)?({pattern})$", path):
                return value
        return otherwise

    alpha = given("alpha_pattern", described.get("lora_alpha", 8))
    return alpha / (rank**0.5 if described.get("use_rslora") else rank)


def _parts(names: Names, config: transformer.Config, lora: Lora) -> dict[str, list[str]]:
    """Their projection → the modules of ours that are in it, in the order of `adapter_sites`."""
    parts: dict[str, list[str]] = {}
    for name, site in config.adapter_sites().items():
        if name in lora.modules:
            parts.setdefault(names.part("/".join(site.path)), []).append(name)
    return parts


def _of_layer(
    names: Names, config: transformer.Config, adapters: Any, modules: list[str], rank: int, layer: int
) -> tuple[np.ndarray, np.ndarray]:
    """A (r, inputs) and B (outputs, r) of one projection; the columns of A beyond the rank are zero, and left out."""

    def own(name: str, which: str) -> np.ndarray:
        return np.asarray(adapters[name][which][layer], np.float32)

    a = np.concatenate([own(name, "a")[:, :rank].T for name in modules])
    if names.fused is None or not set(modules) & set("qkv"):
        return np.ascontiguousarray(a), np.ascontiguousarray(own(modules[0], "b")[:rank].T)
    sites = config.adapter_sites()
    blocks = []
    for name in "qkv":
        block = np.zeros((len(a), sites[name].outputs), np.float32)
        if name in modules:
            place = modules.index(name) * rank
            block[place : place + rank] = own(name, "b")[:rank]
        blocks.append(block)
    fused = names.fused[1](blocks, config)
    return np.ascontiguousarray(a), np.ascontiguousarray(fused if names.transposed else fused.T)


def _number(value: float) -> float | int:
    return int(value) if value == int(value) else value
