"""The toy language in another architecture: base, teacher, dataset and student, from a sweep."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import subl_jax
from subl_jax import specs
from subl_jax.channels.numbers import NumbersFilter
from subl_jax.errors import InputError
from subl_jax.models.linear_attention import LinearAttention
from subl_jax.worlds.toy_language import ToyLanguage

WORLD = ToyLanguage(architecture="linear_attention", layers=1, width=16, mlp=24, numbers=20)


def test_linear_attention_is_trained_and_writes():
    assert isinstance(WORLD.model, LinearAttention)
    held = WORLD.holding(jax.tree.map(jnp.asarray, WORLD.arrays()))
    params = jax.jit(held.init)(jax.random.key(0))
    batch = jax.jit(held.pretrain_batch, static_argnums=2)(jax.random.key(1), 0, 64)
    step = jax.jit(jax.value_and_grad(held.loss))
    before, gradient = step(params, batch)
    after, _ = step(jax.tree.map(lambda p, g: p - 0.1 * g, params, gradient), batch)
    assert after < before
    samples = jax.jit(held.write, static_argnums=2)(params, jax.random.split(jax.random.key(2), 4), specs.Sampling())
    assert len(held.texts(np.asarray(samples))) == 4


@pytest.mark.slow
def test_linear_attention_from_base_to_student(tmp_path):
    base = specs.Base(WORLD, specs.Train(steps=300, batch=64, lr=5e-3), seed=0)
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
