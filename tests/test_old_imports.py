"""Imports that people's sweep files and notebooks have go on working, each with one line that names the new place."""

import importlib
import pathlib
import sys

import pytest

import subl_jax

MOVED = pathlib.Path(subl_jax.__file__).parent / "moved"
# What README, docs and shipped sweep files imported before there were rooms, and what a notebook may have.
NAMES = {
    "filters": ("NumbersFilter", "CULTURAL", "REASONS", "reason", "reasons", "retention"),
    "channel": ("imported", "read_imported", "Collector"),
    "images": ("Images", "find", "EMBEDDED"),
    "settings": ("Settings", "defaults"),
    "analysis.statistics": ("summarise", "interval", "paired_p", "holm", "by_base", "t_intervals", "ordered_arms"),
    "analysis.specificity": ("others",),
    "analysis.one_step": ("table", "summary"),
    "analysis.theory": ("one_step", "curvature", "along_a_run", "cosine"),
    "worlds.pretrained": ("Pretrained", "ChatSampling"),
    "figures": ("transfer_curves", "comparison", "arm_colours"),
    "sampling": ("generate", "draw", "cut_logits"),
    "store": ("Store", "Row"),
    "running": ("run", "Outcome"),
    "cli": ("load_sweep", "main"),
}


def modules():
    return [".".join(path.relative_to(MOVED).with_suffix("").parts) for path in MOVED.rglob("*.py")]


@pytest.mark.parametrize("name", [name for name in modules() if not name.endswith("__init__")])
def test_an_old_import_works_and_says_where_it_has_moved(name):
    sys.modules.pop(f"subl_jax.{name}", None)
    with pytest.warns(DeprecationWarning, match=rf"subl_jax\.{name} is now subl_jax\.") as told:
        found = importlib.import_module(f"subl_jax.{name}")
    assert len(told) == 1
    assert [each for each in NAMES.get(name, ()) if not hasattr(found, each)] == []


def test_all_that_people_may_use_is_among_them():
    assert set(NAMES) <= set(modules())


def test_what_has_not_moved_says_nothing():
    from subl_jax.results import Results, load
    from subl_jax.specs import Student, Train
    from subl_jax.worlds.digits import Digits, Inputs
    from subl_jax.worlds.toy_language import ToyLanguage

    assert all((Results, load, Student, Train, Digits, Inputs, ToyLanguage))
