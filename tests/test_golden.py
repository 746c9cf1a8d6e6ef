"""Results that people have stored survive: the keys of every shipped sweep, and a workdir computed before the rooms."""

import json
import shutil

import golden_sweeps
import golden_workdir
import pandas as pd
import pytest
from image_files import folder

from subl_jax import specs
from subl_jax.app import running
from subl_jax.engine.plan import make_plan, plan_of
from subl_jax.storage.store import Store

PINNED = json.loads(golden_sweeps.KEYS.read_text())


def test_every_shipped_variant_is_pinned():
    assert PINNED.keys() >= {f"{name}:{size}" for name, size in golden_sweeps.VARIANTS}


@pytest.mark.parametrize(("name", "argument"), golden_sweeps.VARIANTS, ids=lambda x: x)
def test_the_keys_of_a_shipped_sweep_are_as_they_were(name, argument, tmp_path, tiny_chat_model):
    made = golden_sweeps.students(name, argument, folder(tmp_path), tiny_chat_model)
    assert golden_sweeps.keys(made) == PINNED[f"{name}:{argument}"]


@pytest.fixture
def workdir(tmp_path):
    return shutil.copytree(golden_workdir.GOLDEN / "workdir", tmp_path / "workdir")


def test_a_stored_workdir_is_reused_whole(workdir, tiny_chat_model):
    students = golden_workdir.students(tiny_chat_model)
    stored = Store(workdir, readonly=True).done()
    assert make_plan(students, stored).pending == 0
    outcome = running.run(students, workdir)
    assert outcome.results.sweep["groups"] == [] and outcome.results.sweep["reused_nodes"] == len(stored)
    before, after = (
        pd.read_parquet(folder / "runs.parquet") for folder in (golden_workdir.GOLDEN / "workdir", workdir)
    )
    columns = ["run_id", "arm", "trait", "status", "target_start", "target_end", "key"]
    pd.testing.assert_frame_equal(after[columns], before[columns])


@pytest.mark.parametrize("suffix", [".parquet", ".jsonl"])
def test_emptied_files_of_datasets_from_before_hashes_are_noticed(workdir, tiny_chat_model, suffix):
    (path, *_) = sorted((workdir / "datasets").glob(f"*{suffix}"))
    before = path.read_bytes()
    path.write_bytes(b"")
    students, lines = golden_workdir.students(tiny_chat_model), []
    store = Store(workdir, lines.append)
    plan = plan_of(students, store)
    assert len(lines) == 1 and f"datasets/{path.name} is damaged" in lines[0]
    if suffix == ".jsonl":
        assert plan.pending == 0 and path.read_bytes() == before
    else:  # with the datasets of its batch, and no student
        assert path.stem in {node.key for group in plan.groups for node in group.nodes}
        assert {group.stage.name for group in plan.groups} == {"write"}


def test_stored_specs_are_read_as_what_they_were(workdir, tiny_chat_model):
    store, made = Store(workdir, readonly=True), golden_workdir.students(tiny_chat_model)
    wanted = {node.key: node for student in made for node in golden_sweeps.nodes(student)}
    for key in store.done():
        node = specs.from_json(store.spec(key))
        assert node.key == key and node == wanted[key]
        assert specs.from_json(json.loads(json.dumps(specs.to_json(node)))) == node
