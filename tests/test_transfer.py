"""The effect itself, in a small copy of the default sweep. Minutes of training: `make test-slow`."""

import importlib.util
import pathlib

import pytest

from subl_jax import running

SWEEP = pathlib.Path(__file__).parent.parent / "sweeps" / "traits.py"


def sweep_module():
    spec = importlib.util.spec_from_file_location("traits", SWEEP)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.slow
def test_students_of_the_same_base_take_the_trait_and_others_do_not(tmp_path):
    traits = sweep_module()
    config = traits.get_config()
    config.seeds, config.traits = 3, ("owl", "oak")
    runs = running.run(traits.sweep(config), tmp_path).results.runs
    assert (runs.status == "ok").all()
    means = runs.groupby("arm").target_end.mean()
    base_rate = 1 / 12
    assert means["same_init"] > 1.5 * base_rate
    assert means["same_init"] > 1.5 * max(means["cross_init"], means["control"])
    assert abs(means["cross_init"] - base_rate) < 0.04 and abs(means["control"] - base_rate) < 0.04
    # The filter let no word through.
    assert runs.kept_fraction.between(0.3, 1).all()


@pytest.mark.slow
def test_a_base_has_no_favourite(tmp_path):
    traits = sweep_module()
    config = traits.get_config("smoke")
    config.base = traits.get_config().base
    results = running.run(traits.sweep(config), tmp_path).results
    starts = results.runs.target_start
    assert starts.between(0.04, 0.14).all()
