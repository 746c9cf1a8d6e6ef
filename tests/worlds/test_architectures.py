"""The toy language in another architecture: base, teacher, dataset and student, from a sweep."""

import pytest

import subl_jax
from subl_jax import specs
from subl_jax.channels.numbers import NumbersFilter
from subl_jax.errors import InputError
from subl_jax.models.linear_attention import LinearAttention
from subl_jax.worlds.toy_language import ToyLanguage


def test_linear_attention_from_base_to_student(tmp_path):
    world = ToyLanguage(architecture="linear_attention", layers=1, width=16, mlp=24, numbers=20)
    assert isinstance(world.model, LinearAttention)
    base = specs.Base(world, specs.Train(steps=300, batch=64, lr=5e-3), seed=0)
    teacher = specs.Teacher(base, "owl", specs.Train(steps=20, batch=16, lr=3e-3), seed=0)
    data = specs.Dataset(teacher, size=64, filter=NumbersFilter(), round=128, budget=64.0)
    student = specs.Student(base, data, specs.Train(steps=4, batch=16))
    results = subl_jax.run([student], tmp_path)
    assert results.runs.status.tolist() == ["ok"]
    assert results.datasets.kept.tolist() == [64]


def test_the_key_of_the_first_architecture_is_as_before_there_were_others():
    assert ToyLanguage(architecture="transformer").key == ToyLanguage().key
    assert ToyLanguage(architecture="linear_attention").key != ToyLanguage().key
    with pytest.raises(InputError, match="ToyLanguage.architecture = 'linear': did you mean"):
        ToyLanguage(architecture="linear")
