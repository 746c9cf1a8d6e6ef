"""How far a student is from its teacher on held-out samples, and from its start: known ones."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny_world

from subl_jax import specs
from subl_jax.errors import InputError
from subl_jax.probes import HeldOut, Moved
from subl_jax.worlds.toy_language import ToyLanguage

WORLD = tiny_world.WORLD
BASE = tiny_world.base()
TEACHER = specs.Teacher(BASE, "owl", tiny_world.TRAIN)
DATA, HELD = tiny_world.written(TEACHER), tiny_world.written(TEACHER, seed=1)
START, OTHER = (WORLD.init(jax.random.key(seed)) for seed in range(2))


def moment(world, params, start, teacher=None, **inputs):
    batch = None  # neither probe looks at what the student trains on
    context = specs.Context(world, jax.random.key(0), start, teacher, inputs)
    return specs.Moment(context, params, start, jnp.float32(0.1), batch, batch, None)


def test_the_kl_is_that_of_the_held_out_samples_alone():
    samples = {"samples": WORLD.write(OTHER, jax.random.split(jax.random.key(1), 16), specs.Sampling())}
    found = HeldOut(HELD).measure(moment(WORLD, START, START, OTHER, data=samples))
    want = WORLD.compare(START, OTHER, WORLD.channel_batch(samples["samples"]))["kl"]
    assert float(found["kl_held_out"]) == pytest.approx(float(want)) and want > 0.1
    assert float(HeldOut(HELD).measure(moment(WORLD, OTHER, START, OTHER, data=samples))["kl_held_out"]) == 0


def test_held_out_samples_are_read_as_an_input_of_the_student():
    student = specs.Student(BASE, DATA, tiny_world.TRAIN, probes=(HeldOut(HELD),))
    assert student.inputs()["probes.0.data"] == HELD


@pytest.mark.parametrize(
    ("data", "line"),
    [
        (DATA, "HeldOut.data: is what the student trains on; give a dataset of another seed"),
        (tiny_world.written(BASE, seed=1), "HeldOut.data: is of another writer"),
    ],
)
def test_what_is_not_held_out_is_refused(data, line):
    with pytest.raises(InputError, match=line):
        specs.Student(BASE, DATA, tiny_world.TRAIN, probes=(HeldOut(data),))


def test_a_move_is_its_euclidean_length():
    moved = jax.tree.map(lambda x: x + 0.5, START)
    size = sum(x.size for x in jax.tree.leaves(START))
    assert float(Moved().measure(moment(WORLD, moved, START))["moved"]) == pytest.approx(0.5 * size**0.5, rel=1e-5)
    assert float(Moved().measure(moment(WORLD, START, START))["moved"]) == 0


def test_a_move_of_adapters_is_what_they_add_to_the_weights():
    world = ToyLanguage(width=8, heads=2, kv_heads=1, mlp=8, layers=1)
    start = world.init(jax.random.key(0))
    params = world.trainable(start, jax.random.key(1), specs.Lora(modules=("q",), max_rank=2, rank=2, alpha=4.0))
    params["lora"]["q"]["b"] = jnp.ones((1, 2, 8))
    added = 2.0 * params["lora"]["q"]["a"][0] @ params["lora"]["q"]["b"][0]
    found = Moved().measure(moment(world, params, start))["moved"]
    assert float(found) == pytest.approx(float(np.linalg.norm(added)), rel=1e-4)
