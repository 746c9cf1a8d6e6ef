"""How chat models leave: adapters for `peft`, whole models for `transformers`."""

import json
from typing import Any

import jax.numpy as jnp
from etils import epath

from subl_jax import specs
from subl_jax.errors import InputError
from subl_jax.pretrained import adapters, gguf_file, names, publishing, weights
from subl_jax.worlds.chat import texts as chat_texts


def save_adapter(world: Any, params: Any, lora: specs.Lora, folder: epath.Path) -> None:
    """Raises InputError where the checkpoint itself is not what the adapters are on."""
    if (world.keep, world.sigma) != (1.0, 0.0):
        raise InputError(
            f"these adapters are on {world.model} with noise (keep={world.keep:g}, sigma={world.sigma:g}), which is no "
            "checkpoint of its own; save the whole model instead (save_model, --what=model)"
        )
    if world.adapter and not world.adapter_live:
        raise InputError(
            f"these adapters are on {world.model} with {world.adapter} merged in, which is no checkpoint of its own; "
            "save the whole model instead (save_model, --what=model), or start from it with adapter_live=True"
        )
    checkpoint = weights.open_checkpoint(world.model)
    kind, _ = family_of(checkpoint)
    adapters.save(folder, names.names_of(kind), world.config, params, lora, str(checkpoint.path))


def save_model(world: Any, params: Any, folder: epath.Path) -> None:
    """The weights with what training added to them. Raises InputError where the family cannot be written."""
    checkpoint = weights.open_checkpoint(world.model)
    kind, settings = family_of(checkpoint)
    known = names.names_of(kind)
    if known.beside_others:
        raise InputError(f"{world.model}: only its text model is read here, so that the whole cannot be written")
    config = checkpoint.config
    publishing.save(folder, known, config, _merged(world, params), settings or publishing.described(kind, config))
    if checkpoint.kind == "folder":
        publishing.copy_tokenizer(checkpoint.path, folder)
    else:
        publishing.write_tokenizer(chat_texts.chat_of(world.model), folder)


def family_of(checkpoint: weights.Checkpoint) -> tuple[str, dict[str, Any]]:
    """The family, and the checkpoint's own config.json; of a GGUF file, which has none, {}."""
    if checkpoint.kind == "gguf":
        metadata, _ = gguf_file.read(checkpoint.path)
        return names.of_gguf(metadata["general.architecture"]), {}
    settings = json.loads((checkpoint.path / "config.json").read_text(encoding="utf-8"))
    kind = settings["model_type"]
    return ("gemma3_text" if kind == "gemma3" and not settings.get("text_config") else kind), settings


def _merged(world: Any, params: Any) -> Any:
    return params["weights"] if "weights" in params else merged_params(world, world.arrays()["weights"], params)


def merged_params(world: Any, base: Any, params: Any) -> Any:
    """The weights `base` with adapters `params` added, inside a program or out; `base` where there are none."""
    if not params:
        return base
    tree = {**base, "layers": {group: dict(parts) for group, parts in base["layers"].items()}}
    for name, adapter in params["lora"].items():
        group, module = world.config.adapter_sites()[name].path
        part = tree["layers"][group][module]
        added = jnp.asarray(adapter["a"]) @ (params["scale"] * jnp.asarray(adapter["b"]))
        tree["layers"][group][module] = {**part, "kernel": jnp.asarray(part["kernel"], jnp.float32) + added}
    return tree
