"""Adapters as the `peft` library keeps them: a folder with `adapter_config.json` and `adapter_model.safetensors`.

There a projection gives W x + lora_alpha / r * B A x, with A (r, inputs) and B (outputs, r): ours, transposed. Where a
family has query, key and value in one weight, their adapters become one of that weight, of their ranks together.
"""

import json
import re
from typing import Any

import numpy as np
from etils import epath

from subl_jax.models import transformer
from subl_jax.pretrained.names import Names
from subl_jax.pretrained.publishing import write_safetensors
from subl_jax.specs import Lora
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
    write_bytes_atomic(folder / "adapter_config.json", json.dumps(described, indent=2).encode())


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
