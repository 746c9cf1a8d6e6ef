"""Parts of an update: one that alone makes a trait likely is found, in student and teacher."""

import jax
import jax.numpy as jnp
import pytest
import tiny_world

from subl_jax import specs
from subl_jax.channels.numbers import NumbersFilter
from subl_jax.errors import InputError
from subl_jax.probes import Parts

WORLD = tiny_world.WORLD
START, OTHER = (WORLD.init(jax.random.key(seed)) for seed in (0, 1))
TRAIT = 1


def chance(params):
    return float(WORLD.evaluate(params, jax.random.key(2))["trait"][TRAIT])


def measured(student, teacher, *parts, start=START, teacher_start=START):
    context = specs.Context(WORLD, jax.random.key(2), start, teacher, {})
    probe = Parts(parts, WORLD.traits[TRAIT])
    bound = specs.bind(probe, specs.traced_values(probe, WORLD))
    found = bound.measure(specs.Moment(context, student, teacher_start, jnp.float32(0.1), None, None, None))
    return {name: float(value) for name, value in found.items()}


def test_each_part_of_an_update_counts_alone_and_is_left_out():
    student = {"embed": OTHER["embed"], "out": 2 * START["out"]}
    teacher = {"embed": 3 * START["embed"], "out": START["out"]}
    found = measured(student, teacher, "embed", "out")
    only = [chance(student | {"out": START["out"]}), chance(student | {"embed": START["embed"]})]
    assert [found["only/0"], found["only/1"]] == pytest.approx(only)
    # Of two parts each is what is left without the other.
    assert [found["without/1"], found["without/0"]] == pytest.approx(only)
    # The teacher has moved in its embedding only.
    assert found["teacher_only/0"] == found["teacher_without/1"] == pytest.approx(chance(teacher))
    assert found["teacher_only/1"] == found["teacher_without/0"] == pytest.approx(chance(START))
    assert len({round(value, 4) for value in found.values()}) == 4


def test_a_student_of_another_start_keeps_its_own():
    found = measured(OTHER, START, "embed", start=OTHER, teacher_start=OTHER)
    assert found["only/0"] == found["without/0"] == pytest.approx(chance(OTHER))
    assert found["teacher_only/0"] == pytest.approx(chance(OTHER | {"embed": START["embed"]}))


def test_a_mistake_is_one_line():
    base = specs.Base(WORLD, specs.Train(0, 1))
    data = specs.Dataset(specs.Teacher(base, "owl", specs.Train(1, 1)), size=4, filter=NumbersFilter())
    with pytest.raises(InputError, match="Parts.trait = 'ow': did you mean 'owl'"):
        specs.Student(base, data, specs.Train(1, 1), probes=(Parts(("embed",), "ow"),))
    with pytest.raises(InputError, match="Parts.parts: 'embde' names no parameter"):
        measured(START, OTHER, "embde")
