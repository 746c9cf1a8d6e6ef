"""The settings in a checkpoint's files, read with a check, and what several families say in the same way."""

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from subl_jax.errors import InputError

# More than any model has; a damaged file must not make us count for ever.
_MOST = 10**7
MOST_LAYERS = 10**4
ACTIVATIONS = {
    "silu": "silu",
    "swish": "silu",
    "gelu": "gelu",
    "gelu_new": "gelu_tanh",
    "gelu_fast": "gelu_tanh",
    "gelu_pytorch_tanh": "gelu_tanh",
    "relu": "relu",
}


@dataclasses.dataclass(frozen=True)
class Fields:
    """Settings of a file, read with a check of their type; `where` begins every complaint."""

    where: str
    values: Mapping[str, Any]
    prefix: str = ""

    def get(self, key: str, default: Any = None) -> Any:
        value = self.values.get(self.prefix + key)
        return default if value is None else value

    def fail(self, key: str, what: str) -> InputError:
        return InputError(f"{self.where}: {self.prefix}{key} = {self.values.get(self.prefix + key)!r}: {what}")

    def count(self, key: str, default: int | None = None, most: int = _MOST) -> int:
        """A whole number of at least 1."""
        value = self.get(key, default)
        if isinstance(value, bool) or not isinstance(value, int) or not 1 <= value <= most:
            raise self.fail(key, f"must be a whole number from 1 to {most}")
        return value

    def count_or(self, key: str, default: int | None) -> int | None:
        return default if self.get(key) is None else self.count(key)

    def number(self, key: str, default: float | None = None) -> float:
        """A finite number above 0."""
        value = self.get(key, default)
        if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < math.inf:
            raise self.fail(key, "must be a number above 0")
        return float(value)

    def number_or_none(self, key: str) -> float | None:
        return None if self.get(key) is None else self.number(key)

    def flag(self, key: str, default: bool) -> bool:
        value = self.get(key, default)
        if not isinstance(value, bool):
            raise self.fail(key, "must be true or false")
        return value

    def part(self, key: str) -> "Fields":
        """The settings nested under `key`, empty where there are none."""
        value = self.get(key, {})
        if not isinstance(value, dict):
            raise self.fail(key, "must hold settings of its own")
        return Fields(f"{self.where}: {self.prefix}{key}", value)

    def refuse(self, **needed: Any) -> None:
        """Raises where a setting is there and is not what alone can be computed."""
        for key, value in needed.items():
            if self.get(key, value) != value:
                raise self.fail(key, f"only {value!r} can be read")


def activation(fields: Fields, key: str, default: str) -> str:
    name = fields.get(key, default)
    if name not in ACTIVATIONS:
        raise fields.fail(key, f"must be one of {', '.join(ACTIVATIONS)}")
    return ACTIVATIONS[name]


def llama_factors(base: float, turned: int, factor: float, low: float, high: float, length: int) -> list[float]:
    """What Llama 3 divides frequencies by: 1 for short waves, `factor` for long ones, between them in between."""
    turns = length / (2 * math.pi * base ** (np.arange(0, turned, 2) / turned))  # of a pair, over `length` positions
    kept = np.clip((turns - low) / (high - low), 0, 1)
    return (1 / ((1 - kept) / factor + kept)).tolist()


def rope(fields: Fields, given: Fields, turned: int, base: float) -> dict[str, Any]:
    """rope_base and rope_factors, from the rotary settings `given` of a model with settings `fields`."""
    base = given.number("rope_theta", base)
    kind = given.get("rope_type", given.get("type", "default"))
    factors = None
    if kind == "linear":
        factors = [given.number("factor")] * (turned // 2)
    elif kind == "llama3":
        low, high = given.number("low_freq_factor"), given.number("high_freq_factor")
        if high <= low:
            raise given.fail("high_freq_factor", "must be above low_freq_factor")
        length = given.count_or("original_max_position_embeddings", None) or fields.count("max_position_embeddings")
        factors = llama_factors(base, turned, given.number("factor"), low, high, length)
    elif kind != "default":
        raise InputError(f"{given.where}: rope_type = {kind!r}: must be one of default, linear, llama3")
    return {"rope_base": base, "rope_factors": None if factors is None else tuple(factors)}


def rope_fields(fields: Fields) -> Fields:
    """transformers 4 writes `rope_scaling` beside `rope_theta`, transformers 5 both as `rope_parameters`."""
    return fields.part("rope_scaling" if fields.get("rope_scaling") else "rope_parameters")


def locality(fields: Fields, layers: int, window: int | None, local: list[bool]) -> dict[str, Any]:
    """window and local_layers; `local` is what holds where the file does not say it layer by layer."""
    kinds = fields.get("layer_types")
    if kinds is not None:
        known = {"sliding_attention": True, "full_attention": False}
        if not isinstance(kinds, list) or len(kinds) != layers or not set(map(str, kinds)) <= set(known):
            raise InputError(f"{fields.where}: layer_types: must be {layers} times {' or '.join(known)}")
        local = [known[kind] for kind in kinds]
    if window is None or not any(local):
        return {}
    return {"window": window, "local_layers": None if all(local) else tuple(local)}
