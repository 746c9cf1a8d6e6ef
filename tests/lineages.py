"""Small specs of the toy language, for tests that need a lineage and compute nothing or little of it."""

from typing import Any

from subl_jax import specs
from subl_jax.channels.numbers import NumbersFilter
from subl_jax.worlds.toy_language import ToyLanguage

WORLD = ToyLanguage(width=8, heads=2, kv_heads=1, mlp=8, layers=1)
TRAIN = specs.Train(steps=4, batch=2, evals=2)


def base(seed: int = 0, **fields: Any) -> specs.Base:
    return specs.Base(**{"of": WORLD, "train": TRAIN, **fields}, seed=seed)


def teacher(start: specs.Node | None = None, trait: str = "owl", **fields: Any) -> specs.Teacher:
    return specs.Teacher(start or base(), trait, **{"train": TRAIN, **fields})


def dataset(writer: specs.Node | None = None, **fields: Any) -> specs.Dataset:
    return specs.Dataset(writer or teacher(), **{"size": 8, "round": 8, "filter": NumbersFilter(), **fields})


def student(start: specs.Node | None = None, data: Any = None, **fields: Any) -> specs.Student:
    return specs.Student(start or base(), data or dataset(), **{"train": TRAIN, **fields})


def plain(seed: int = 0, **fields: Any) -> specs.Dataset:
    """Data that a base without any trait wrote."""
    return dataset(base(seed), **fields)
