"""Folders in the form of Hugging Face, here or on the hub: their files, and what those are that are no model."""

import functools
import json
import pathlib
import re
from typing import Any

from subl_jax.errors import InputError
from subl_jax.pretrained.gguf_file import Tensor

# What makes a folder, beside its weights: the settings, and all that tells text from tokens.
DESCRIPTION = (
    "config.json",
    "generation_config.json",  # of which only the tokens that end an answer are read
    "model.safetensors.index.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "tokenizer.model",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "merges.txt",
    "chat_template.jinja",
    "chat_template.json",
    "additional_chat_templates/*.jinja",
)
ADAPTER = "adapter_config.json"
_WEIGHTS = "model*.safetensors"
_PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl", ".msgpack", ".h5")
_FLOATS = ("F64", "F32", "F16", "BF16")
_MOST_JSON = 1 << 27


def listed(folder: str, pattern: str) -> list[pathlib.Path]:
    return sorted(pathlib.Path(folder).glob(pattern))


def some(names: list[str]) -> str:
    names = [name if name.isprintable() else repr(name) for name in sorted(names)]
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")


def read_json(path: pathlib.Path) -> dict[str, Any]:
    try:
        if path.stat().st_size > _MOST_JSON:
            raise InputError(f"{path}: is too large to be settings")
        value = json.loads(path.read_bytes())
    except OSError as error:
        raise InputError(f"{path}: cannot be read: {error.strerror or error}") from None
    except (ValueError, RecursionError):
        raise InputError(f"{path}: is not JSON") from None
    if not isinstance(value, dict):
        raise InputError(f"{path}: must be a JSON object")
    return value


def not_a_model(where: str, names: list[str], adapter: pathlib.Path | None = None) -> str | None:
    """What files called `names` are, and what to do, where they are no model; `adapter` is its configuration here."""
    if "config.json" not in names and ADAPTER in names:
        settings = read_json(adapter) if adapter is not None and adapter.is_file() else {}
        base = settings.get("base_model_name_or_path") or "its base"
        return (
            f"{where}: is an adapter on {base} (adapter_config.json), not a model; give that one, or the merged model: "
            "peft's merge_and_unload() and save_pretrained(…)"
        )
    if any(name.endswith(".safetensors") for name in names):
        return None
    ggufs = sorted(name for name in names if name.endswith(".gguf"))
    if ggufs:
        return f"{where}: holds GGUF files; give the path of one of them: {some(ggufs)}"
    pickles = sorted(name for name in names if pathlib.Path(name).suffix in _PICKLES)
    if pickles:
        return (
            f"{where}: has no safetensors, only {some(pickles)}, which could run code when read; where you trust it, "
            "from_pretrained(…).save_pretrained(…) of transformers writes safetensors"
        )
    return None


def shards(folder: pathlib.Path) -> list[pathlib.Path]:
    # As transformers: a whole file goes before an index, which may be left over from before shards were merged.
    if (folder / "model.safetensors").is_file():
        return [folder / "model.safetensors"]
    index = folder / "model.safetensors.index.json"
    if not index.is_file():
        others = [file.name for file in listed(str(folder), "*.safetensors")]
        why = f"there is only {some(others)}" if others else "there are no weights"
        raise InputError(f"{folder}: needs model.safetensors or model.safetensors.index.json; {why}")
    names = read_json(index).get("weight_map")
    if not isinstance(names, dict) or not names or not all(isinstance(name, str) for name in names.values()):
        raise InputError(f"{index}: needs a weight_map from tensors to files")
    files = sorted(set(names.values()))
    for name in files:
        if not re.fullmatch(r"\w[\w.-]*\.safetensors", name):
            raise InputError(f"{index}: {name!r} is not the name of a safetensors file in this folder")
        if not (folder / name).is_file():
            raise InputError(f"{index}: the file {name} is missing")
    return [folder / name for name in files]


def safetensors(path: pathlib.Path) -> dict[str, Tensor]:
    from safetensors import SafetensorError, safe_open

    try:
        file = safe_open(path, framework="np")
        slices = {name: file.get_slice(name) for name in file.keys()}  # noqa: SIM118 - it is no mapping
        kinds = {name: (tuple(part.get_shape()), part.get_dtype()) for name, part in slices.items()}
    except (SafetensorError, OSError, ValueError) as error:
        raise InputError(f"{path}: is cut short or not a safetensors file: {str(error).splitlines()[0]}") from None
    for name, (_, dtype) in kinds.items():
        if dtype not in _FLOATS:
            raise InputError(f"{path}: tensor {name!r} holds {dtype}: must be one of {', '.join(_FLOATS)}")
    return {name: Tensor(shape, functools.partial(file.get_tensor, name)) for name, (shape, _) in kinds.items()}


def downloaded(path: str, name: str, revision: str | None) -> pathlib.Path:
    try:
        import huggingface_hub
        from huggingface_hub import errors
    except ImportError:
        raise InputError(
            f"no folder {path!r} here, and the hub needs huggingface_hub: pip install 'subl_jax[chat]'"
        ) from None
    try:
        patterns, at = [_WEIGHTS, *DESCRIPTION, ADAPTER], {"revision": revision} if revision else {}
        folder = pathlib.Path(huggingface_hub.snapshot_download(name, allow_patterns=patterns, **at))
        names = [file.name for file in listed(str(folder), "*")]
        if not any(file.endswith(".safetensors") for file in names):  # what else is there, which was left
            names = list(dict.fromkeys([*names, *huggingface_hub.HfApi().list_repo_files(name, **at)]))
    except (errors.HfHubHTTPError, errors.HFValidationError, OSError) as error:
        why = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise InputError(f"no folder {path!r} here, and the hub does not give it: {why}") from None
    if why := not_a_model(f"{path} on the hub", names, folder / ADAPTER):
        raise InputError(why)
    return folder
