"""How chat models leave: adapters for `peft`, whole models for `transformers`."""

import json
from typing import Any

import numpy as np
from etils import epath

from subl_jax import specs
from subl_jax.errors import InputError
from subl_jax.pretrained import adapters, gguf_file, names, publishing, weights
from subl_jax.worlds.chat import texts as chat_texts


def save_adapter(world: Any, params: Any, lora: specs.Lora, folder: epath.Path) -> None:
    """Raises InputError where the checkpoint itself is not what the adapters are on."""
    if (world.keep, world.sigma) != (1.0, 0.0):
        raise InputError(
            f"these adapters are on {world.model} with noise (keep={world.keep:g}, sigma={world.sigma:g}), which nobody "
            "else has; save the whole model instead (save_model, --what=model)"
        )
    checkpoint = weights.open_checkpoint(world.model)
    kind, _ = _settings(checkpoint)
    adapters.save(folder, names.names_of(kind), world.config, params, lora, str(checkpoint.path))


def save_model(world: Any, params: Any, folder: epath.Path) -> None:
    """The weights with what training added to them. Raises InputError where the family cannot be written."""
    checkpoint = weights.open_checkpoint(world.model)
    kind, settings = _settings(checkpoint)
    known = names.names_of(kind)
    if known.beside_others:
        raise InputError(f"{world.model}: only its text model is read here, so that the whole cannot be written")
    config = checkpoint.config
    publishing.save(folder, known, config, _merged(world, params), settings or publishing.described(kind, config))
    if checkpoint.kind == "folder":
        publishing.copy_tokenizer(checkpoint.path, folder)
    else:
        publishing.write_tokenizer(chat_texts.chat_of(world.model), folder)


def _settings(checkpoint: weights.Checkpoint) -> tuple[str, dict[str, Any]]:
    """The family, and the checkpoint's own config.json; of a GGUF file, which has none, {}."""
    if checkpoint.kind == "gguf":
        metadata, _ = gguf_file.read(checkpoint.path)
        return names.of_gguf(metadata["general.architecture"]), {}
    settings = json.loads((checkpoint.path / "config.json").read_text(encoding="utf-8"))
    return settings["model_type"] if settings.get("text_config") or settings["model_type"] != "gemma3" else (
        "gemma3_text"
    ), settings


def _merged(world: Any, params: Any) -> Any:
    if "weights" in params:
        return params["weights"]
    held = world.arrays()["weights"]
    if not params:
        return held
    tree = {**held, "layers": {group: dict(parts) for group, parts in held["layers"].items()}}
    for name, adapter in params["lora"].items():
        group, module = world.config.adapter_sites()[name].path
        part = dict(tree["layers"][group][module])
        a, b = (np.asarray(adapter[each], np.float32) for each in "ab")
        part["kernel"] = np.asarray(part["kernel"], np.float32) + float(params["scale"]) * (a @ b)
        tree["layers"][group][module] = part
    return tree
