"""Whole models as folders in the form of Hugging Face: config.json, model.safetensors, and the tokenizer."""

import json
import os
import pathlib
from typing import Any

import numpy as np
from etils import epath

from subl_jax.errors import InputError
from subl_jax.models import transformer
from subl_jax.pretrained import folders
from subl_jax.pretrained.chat import PLAIN, Chat
from subl_jax.pretrained.names import Names, tensors_of
from subl_jax.storage.atomic import replacing, write_bytes_atomic

_OF_WEIGHTS = ("config.json", "model.safetensors.index.json")  # which are written anew
# How far a model made from settings alone may read, where its file does not say.
_POSITIONS = 8192


def save(folder: epath.Path, names: Names, config: transformer.Config, params: Any, settings: dict[str, Any]) -> None:
    """Writes config.json and the weights, in float32. settings: those of the family's config.json.

    Raises:
      StorageError: a file could not be written.
    """
    folder.mkdir(parents=True, exist_ok=True)
    kept = {name: value for name, value in settings.items() if name not in ("torch_dtype", "dtype")}
    described = {
        **kept,
        "architectures": [names.architecture],
        "dtype": "float32",
        "tie_word_embeddings": config.tied,
    }
    write_safetensors(folder / "model.safetensors", tensors_of(names, config, params))
    write_json(folder / "config.json", described)


def described(kind: str, config: transformer.Config) -> dict[str, Any]:
    """The config.json of a model that came without one: of the toy language, or of a GGUF file.

    Raises:
      InputError: the family's settings are more than is known of it here.
    """
    fits = kind in ("llama", "mistral", "qwen2", "qwen3") and config.local_layers is None
    factors = set(config.rope_factors or (1.0,))
    if not fits or len(factors) > 1 or config.rotary_dim is not None:
        raise InputError(
            f"a {kind} model of a GGUF file cannot be written as a folder: its settings are not all known; "
            "start from the checkpoint's own Hugging Face folder"
        )
    rope = {"rope_type": "default", "rope_theta": config.rope_base}
    factor = factors.pop()
    if factor != 1:
        rope = {"rope_type": "linear", "factor": factor, "rope_theta": config.rope_base}
    family: dict[str, Any] = {"llama": {"attention_bias": config.out_bias, "mlp_bias": config.mlp_bias}}.get(kind, {})
    if config.window is not None:
        family, kind = {"sliding_window": config.window}, "mistral"
    return {
        "model_type": kind,
        "vocab_size": config.vocab,
        "hidden_size": config.width,
        "num_hidden_layers": config.layers,
        "num_attention_heads": config.heads,
        "num_key_value_heads": config.kv_heads,
        "head_dim": config.head_dim,
        "intermediate_size": config.mlp,
        "hidden_act": config.activation,
        "rms_norm_eps": config.norm_eps,
        "rope_parameters": rope,
        "rope_theta": config.rope_base,
        "max_position_embeddings": _POSITIONS,
        **family,
    }


def copy_tokenizer(source: pathlib.Path, folder: epath.Path) -> None:
    """The files of a Hugging Face folder that tell text from tokens."""
    for pattern in folders.DESCRIPTION:
        for file in folders.listed(str(source), pattern) if pattern not in _OF_WEIGHTS else ():
            write_bytes_atomic(folder / file.relative_to(source).as_posix(), file.read_bytes())


def write_tokenizer(chat: Chat, folder: epath.Path) -> None:
    """The tokenizer of a GGUF file, as a folder has it."""
    special = {name: text for name, text in chat.variables.items() if name.endswith("_token") and text}
    template = PLAIN if chat.template is None else chat.template
    write_words(chat.tokenizer, {**special, "chat_template": template}, folder)


def write_words(tokenizer: Any, described: dict[str, Any], folder: epath.Path) -> None:
    """A `tokenizers.Tokenizer`, and what `transformers` asks besides: `bos_token`, `eos_token`, `pad_token`, …"""
    write_bytes_atomic(folder / "tokenizer.json", tokenizer.to_str(pretty=False).encode())
    write_json(folder / "tokenizer_config.json", {"tokenizer_class": "PreTrainedTokenizerFast", **described})


def write_json(path: epath.Path, value: Any) -> None:
    write_bytes_atomic(path, json.dumps(value, indent=2).encode())


def write_safetensors(path: epath.Path, tensors: dict[str, np.ndarray]) -> None:
    """Raises StorageError."""
    from safetensors.numpy import save_file

    with replacing(path) as temporary:
        save_file(tensors, os.fspath(temporary), metadata={"format": "pt"})
