"""Every sweep file that comes with the package makes specs that can be planned, whatever its argument."""

import pathlib

import numpy as np
import pytest
from ml_collections import ConfigDict
from test_images import folder

from subl_jax import specs
from subl_jax.cli import load_sweep
from subl_jax.errors import InputError
from subl_jax.plan import make_plan

SWEEPS = pathlib.Path(__file__).parents[1] / "sweeps"
MODULES = {path.stem: load_sweep(str(path)) for path in SWEEPS.glob("*.py")}
AXES = list(MODULES["digits_axes"].AXES)
CASES = [
    *(("traits", size) for size in ("full", "smoke", "strong")),
    *(("digits", size) for size in ("8x8", "mnist")),
    *(("digits_axes", axis) for axis in AXES),
    *(("blurry_seven", size) for size in ("8x8", "mnist")),
    *(("theorem", world) for world in ("digits", "language")),
]


def students(name, argument, **changes):
    config = MODULES[name].get_config(argument)
    assert isinstance(config, ConfigDict)
    config.seeds = 2
    config.update(changes)
    return specs.checked(MODULES[name].sweep(config))


def test_every_sweep_file_is_tried_here():
    assert {name for name, _ in CASES} == MODULES.keys()


@pytest.mark.parametrize(("name", "argument"), CASES, ids=lambda x: x)
def test_a_sweep_can_be_planned(name, argument, tmp_path):
    made = students(name, argument, **({"data_dir": folder(tmp_path)} if argument == "mnist" else {}))
    plan = make_plan(made, ())
    assert plan.pending and {specs.arm_of(student) for student in made} >= {"same_init", "cross_init"}
    assert make_plan(made, {node.key for group in plan.groups for node in group.nodes}).pending == 0


@pytest.mark.parametrize("axis", AXES)
def test_an_axis_varies_something_in_every_arm(axis):
    made = students("digits_axes", axis)
    values = len(MODULES["digits_axes"].AXES[axis][0])
    for arm in ("same_init", "cross_init"):
        of_arm = {specs.run_id(student) for student in made if specs.arm_of(student) == arm}
        # A start of its own is the same init's alone.
        assert len(of_arm) == 2 * (1 if arm == "cross_init" and axis in ("sigma", "shared_layers") else values)


def test_the_six_bars_are_there():
    arms = [specs.arm_of(student) for student in students("digits", "8x8")]
    bars = ("reference", "teacher", "same_init", "cross_init", "same_init_all", "cross_init_all")
    assert sorted(arms) == sorted(2 * bars)


@pytest.mark.parametrize("name", MODULES)
def test_an_unknown_argument_is_told_with_the_right_ones(name):
    with pytest.raises(InputError, match=f"sweeps/{name}.py:nothing"):
        MODULES[name].get_config("nothing")


def test_a_mistyped_axis_and_values_of_ones_own():
    with pytest.raises(InputError, match="config.axis = 'lrr': did you mean 'lr'"):
        students("digits_axes", "lr", axis="lrr")
    rates = {student.train.lr for student in students("digits_axes", "lr", points=(0.5, 0.25))}
    assert rates == {0.5, 0.25}
    assert np.isclose(students("digits_axes", "width", sigma=0.1)[0].start.sigma, 0.1)
