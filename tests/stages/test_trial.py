"""A mistake in somebody's own objective, probe, transform or audit is one line, before anything is computed."""

import dataclasses

import jax.numpy as jnp
import pytest
import tiny_world

from subl_jax import specs, stages
from subl_jax.errors import InputError

BASE = tiny_world.base()
DATA = tiny_world.written(specs.Teacher(BASE, "owl", tiny_world.TRAIN))


def student(**fields):
    return specs.Student(BASE, DATA, tiny_world.TRAIN, **fields)


@dataclasses.dataclass(frozen=True)
class Rows(specs.Objective):
    def loss(self, context, params, batch):
        return context.world.written_losses(params, None, batch)


@dataclasses.dataclass(frozen=True)
class Missing(specs.Objective):
    def loss(self, context, params, batch):
        return context.inputs["scores"].mean()


@dataclasses.dataclass(frozen=True)
class Vector(specs.Probe):
    metrics = {"depth": specs.Metric("depth")}

    def measure(self, moment):
        return {"depth": jnp.zeros(3)}


@dataclasses.dataclass(frozen=True)
class Family(specs.Probe):
    metrics = {"depth": specs.Metric("depth")}

    def measure(self, moment):
        return {"depth/0": jnp.float32(0), "depth/1": jnp.float32(1)}


@dataclasses.dataclass(frozen=True)
class Silent(specs.Probe):
    metrics = {"depth": specs.Metric("depth")}

    def measure(self, moment):
        return {}


@dataclasses.dataclass(frozen=True)
class Half(specs.Transform):
    def select(self, key, sources, size):
        return sources.rows[0][: size // 2]


@dataclasses.dataclass(frozen=True)
class Flat(specs.Audit):
    def score(self, context, samples):
        return specs.Scores(jnp.zeros(3), jnp.zeros(len(samples)), jnp.float32(0))


@pytest.mark.parametrize(
    ("made", "line"),
    [
        (lambda: student(objective=Rows()), r"Rows: cannot be computed: TypeError: Gradient only defined for scalar"),
        (lambda: student(objective=Missing()), r"Missing: cannot be computed: KeyError: 'scores'"),
        (
            lambda: student(probes=(Vector(),)),
            r"Vector.measure: the metric 'depth' has shape \(3,\); expected a number",
        ),
        (lambda: student(probes=(Silent(),)), r"Silent.measure: the metric 'depth' is declared, and not among what"),
        (
            lambda: specs.Transformed((DATA,), Half()),
            r"Half.select: gives samples of shape \(8, 3\); expected \(16, 3\)",
        ),
        (lambda: specs.Audited(DATA, Flat(), BASE), r"Flat.score: tokens of shape \(3,\); expected \(16, 2\)"),
    ],
    ids=["loss", "input", "vector", "silent", "rows", "scores"],
)
def test_it_is_told_in_one_line(made, line):
    with pytest.raises(InputError, match=line) as error:
        stages.check(made())
    assert "\n" not in str(error.value)


def test_what_is_right_is_passed():
    stages.check(student())
    stages.check(student(probes=(Family(),)))
