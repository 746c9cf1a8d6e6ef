"""Whose parameters stay."""

import json

import numpy as np
import pytest
import tiny_world
from computing import ALONE, compute, lineage, same
from tiny_world import TRAIN, written

from subl_jax import specs


def has_parameters(store, node):
    return store.get(node.key) is not None


@pytest.mark.parametrize("keep", ["all", "teachers", "curves"])
def test_parameters_are_kept_as_asked_and_everything_else_is_there(sweep, undisturbed, tmp_path, keep):
    done = compute(sweep, tmp_path, keep=keep, **ALONE)
    store, nodes = done.store, lineage(sweep)
    same(done.store, undisturbed.store, [node for node in nodes if keep == "all"])
    for node in nodes:
        leaf = isinstance(node, specs.Student)
        expected = isinstance(node, specs.Dataset) or keep == "all" or (keep == "teachers" and not leaf)
        assert has_parameters(store, node) == expected, node
        steps, values = store.curves(node.key)
        known_steps, known = undisturbed.store.curves(node.key)
        np.testing.assert_array_equal(steps, known_steps)
        assert values.keys() == known.keys()
        for metric, each in values.items():
            np.testing.assert_array_equal(each, known[metric])
    # Nothing is left behind by what was written twice, and a rerun finds all of it.
    sidecars = [json.loads(path.read_text()) for path in (tmp_path / "artifacts").glob("*.json")]
    assert {path.name for path in (tmp_path / "artifacts").glob("*.safetensors")} == {
        sidecar["data"] for sidecar in sidecars if sidecar["data"]
    }
    assert compute(sweep, tmp_path, keep=keep, **ALONE).computed == {}


def test_only_what_a_new_node_needs_is_computed_again(sweep, tmp_path):
    compute(sweep, tmp_path, keep="curves", **ALONE)
    old = sweep[0]
    new = old.replace(seed=7)
    done = compute([*sweep, new], tmp_path, keep="curves", **ALONE)
    # Its dataset was kept; its start and the teacher it is compared with were not.
    assert done.computed == {"pretrain": 1, "instil": 1, "distil": 1}
    assert not has_parameters(done.store, new.start)
    fresh = compute([new], tmp_path / "fresh", **ALONE).store
    _, values = done.store.curves(new.key)
    for metric, known in fresh.curves(new.key)[1].items():
        np.testing.assert_array_equal(values[metric], known)


def test_a_student_that_teaches_keeps_its_parameters_until_its_students_are_done(tmp_path):
    (first, *_) = tiny_world.students()
    second = specs.Student(first.start, written(first), TRAIN)
    store = compute([first, second], tmp_path / "teachers", keep="teachers", **ALONE).store
    assert has_parameters(store, first) and not has_parameters(store, second)
    store = compute([first, second], tmp_path / "curves", keep="curves", **ALONE).store
    assert not has_parameters(store, first) and not has_parameters(store, second)
    assert store.status(second.key) == "ok"
