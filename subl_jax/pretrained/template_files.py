"""Where a Hugging Face folder keeps its chat template: today in `chat_template.jinja`, in others' files before that.

In order: `chat_template.jinja`; `chat_template` of `tokenizer_config.json`, one or several by name;
`chat_template.json`, which belongs to a processor; `additional_chat_templates/*.jinja`. Of several the one called
`default` is taken.
"""

import json
import pathlib
from collections.abc import Mapping
from typing import Any

from subl_jax.errors import InputError

JINJA, JSON, ADDITIONAL = "chat_template.jinja", "chat_template.json", "additional_chat_templates"
_FOR_TOOLS = ("tool_use", "tools", "rag")


def find(folder: pathlib.Path, config: Mapping[str, Any]) -> tuple[str | None, list[str]]:
    """The template, None where there is none, and a line for the user where another one could have been meant.

    `config` is the content of `tokenizer_config.json`.

    Raises:
      InputError: a file cannot be read, or holds no template.
    """
    if (folder / JINJA).is_file():
        return read_text(folder / JINJA), []
    places = {
        folder / "tokenizer_config.json": config.get("chat_template"),
        folder / JSON: read_json(folder / JSON).get("chat_template"),
        folder / ADDITIONAL: {file.stem: read_text(file) for file in sorted((folder / ADDITIONAL).glob("*.jinja"))},
    }
    for place, given in places.items():
        if given:
            return _chosen(place, given)
    return None, []


def _chosen(place: pathlib.Path, given: Any) -> tuple[str, list[str]]:
    if isinstance(given, str):
        return given, []
    if isinstance(given, list) and all(isinstance(entry, dict) for entry in given):
        given = {entry.get("name"): entry.get("template") for entry in given}
    if not isinstance(given, dict) or not all(isinstance(text, str) for text in (*given, *given.values())):
        raise InputError(f"{place}: chat_template: must be a text, or several with a name each")
    if "default" in given:
        return given["default"], []
    name = next((name for name in given if name not in _FOR_TOOLS), next(iter(given)))
    names = ", ".join(given)
    return given[name], [f"{place}: has the chat templates {names}, and none called default; {name} is used"]


def read_text(file: pathlib.Path) -> str:
    """Raises InputError where it cannot be read."""
    try:
        return file.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{file}: cannot be read: {error}") from None


def read_json(file: pathlib.Path) -> dict[str, Any]:
    """The object in a file, {} where there is no file. Raises InputError where it holds something else."""
    if not file.is_file():
        return {}
    try:
        value = json.loads(read_text(file))
    except (ValueError, RecursionError) as error:
        raise InputError(f"{file}: not JSON: {error}") from None
    if not isinstance(value, dict):
        raise InputError(f"{file}: expected a JSON object, got a {type(value).__name__}")
    return value
