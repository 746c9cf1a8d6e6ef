"""How models and data leave a workdir: in forms that `peft`, `transformers` and `datasets` read, each with a card."""

import json
from typing import Any

import pandas as pd
from etils import epath

from subl_jax import specs
from subl_jax.errors import InputError
from subl_jax.storage import jsonl
from subl_jax.storage.atomic import write_bytes_atomic, write_parquet_atomic


def save_adapter(model: Any, folder: epath.Path) -> None:
    """`adapter_config.json`, `adapter_model.safetensors` and a card. model: a `results.Model`.

    Raises:
      InputError: it has no adapters, or nobody else has what they are on.
    """
    node, world = model.node, model.node.world
    tuned = node.tuned
    if tuned is None or tuned.lora is None:
        how = "is a base" if tuned is None else "was trained in all its parameters"
        raise InputError(f"{_called(node)} has no adapters, it {how}; save the whole model (save_model, --what=model)")
    if not isinstance(world, specs.ExportsAdapters):
        raise InputError(f"adapters of the world {world.name} are read by no other library")
    world.save_adapter(model.params, tuned.lora, folder)
    base = json.loads((folder / "adapter_config.json").read_text(encoding="utf-8"))["base_model_name_or_path"]
    _write_card(folder, {"library_name": "peft", "base_model": base}, _called(node), node, "")


def save_model(model: Any, folder: epath.Path) -> None:
    """A folder in the form of Hugging Face, with tokenizer and card; adapters merged. Raises as `save_adapter`."""
    node, world = model.node, model.node.world
    if not isinstance(world, specs.ExportsModels):
        raise InputError(f"models of the world {world.name} exist in no other library: nothing like them is there")
    world.save_model(model.params, folder)
    _write_card(folder, {"library_name": "transformers"}, _called(node), node, "")


def save_dataset(student: specs.Student, samples: pd.DataFrame, folder: epath.Path) -> None:
    """`data/train.parquet` and `data/dropped.parquet`, the same lines as `messages.jsonl`, and a card.

    samples: prompt, completion, kept, why. Only what was kept is `train`.

    Raises:
      StorageError: a file could not be written.
    """
    (folder / "data").mkdir(parents=True, exist_ok=True)
    kept, dropped = samples[samples.kept], samples[~samples.kept]
    write_parquet_atomic(folder / "data" / "train.parquet", kept[["prompt", "completion"]].reset_index(drop=True))
    if len(dropped):
        table = dropped[["prompt", "completion", "why"]].reset_index(drop=True)
        write_parquet_atomic(folder / "data" / "dropped.parquet", table)
    pairs = list(zip(kept.prompt, kept.completion, strict=True))
    write_bytes_atomic(folder / "messages.jsonl", jsonl.message_lines(pairs))
    files = [{"split": "train", "path": "data/train.parquet"}]
    files += [{"split": "dropped", "path": "data/dropped.parquet"}] if len(dropped) else []
    # Splits of other columns are configurations of their own there.
    configs = [
        {"config_name": "default" if i == 0 else file["split"], "data_files": [file]} for i, file in enumerate(files)
    ]
    reasons = dropped.why.value_counts()
    why = "".join(f"- {count} for “{reason}”\n" for reason, count in reasons.items())
    text = f"{len(samples)} samples were drawn, {len(kept)} kept; dropped were:\n\n{why or '- none' + chr(10)}\n"
    _write_card(folder, {"configs": configs}, f"Data of {_called(student.data)}", student.data, text)


def _called(node: Any) -> str:
    trait = node.given_trait
    return f"{type(node).__name__.lower()} {node.key[:16]}" + (f" ({trait})" if trait else "")


def _write_card(folder: epath.Path, header: dict[str, Any], title: str, node: Any, text: str) -> None:
    """README.md: its header as the hub reads it (JSON is YAML), and where the thing comes from."""
    lines = []
    for role, spec in _behind(node):
        fields = {name: value for name, value in specs.flat(role, spec).items() if value is not None}
        lines += [f"| `{name}` | {_cell(value)} |" for name, value in fields.items()]
    front = "".join(f"{name}: {json.dumps(value, ensure_ascii=False)}\n" for name, value in header.items())
    lineage = "\n".join(["| field | value |", "|---|---|", *lines])
    card = f"---\n{front}---\n\n# {title}\n\n{text}## Lineage\n\nMade with `subl_jax`; key `{node.key}`.\n\n{lineage}\n"
    write_bytes_atomic(folder / "README.md", card.encode())


def _behind(node: Any) -> list[tuple[str, Any]]:
    """The node and all it comes from; of data also the model that wrote them."""
    found = list(specs.ancestry(node))
    if isinstance(node, specs.Data) and node.first_writer is not None:
        found = [each for each in found if each[0] != "world"] + list(specs.ancestry(node.first_writer))
    return found


def _cell(value: Any) -> str:
    return str(value).replace("|", "\\|").replace("\n", "\\n")
