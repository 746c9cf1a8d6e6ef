"""Swept fields, and which runs belong to which cell."""

import itertools

import numpy as np
import pandas as pd
from fake_results import fake_runs

from subl_jax.results.cells import Cells, cell_name, swept_columns
from subl_jax.results.comparisons import summarise


def test_swept_are_the_fields_that_vary_within_an_arm_and_trait():
    runs = fake_runs(swept={"student.train.lr": (1e-3, 1e-2), "data.size": (100, 100)})
    runs["teacher.until"] = runs["trait"].map({"owl": 0.9, "cat": 0.8, "dog": 0.7})
    runs["student.shuffle"] = runs["arm"] == "control"
    assert swept_columns(runs) == ["student.train.lr"]


def test_no_value_is_a_value_within_an_arm():
    runs = fake_runs(swept={"student.rank": (np.nan, 8.0)})
    assert swept_columns(runs) == ["student.rank"]
    assert len(Cells.of(runs).cells) == 2


def test_lists_and_arrays_can_be_swept():
    runs = fake_runs(swept={"student.layers": ((0, 1), (2,))})
    runs["student.layers"] = runs["student.layers"].map(np.array)  # as read back from a file
    cells = Cells.of(runs)
    assert [cell["student.layers"] for cell in cells.cells] == ["(0, 1)", "(2,)"]
    assert len(cells.select(runs, cells.cells[0])) == len(runs) / 2


def test_seeds_of_any_name_are_not_swept():
    runs = fake_runs(traits=("owl",)).assign(**{"world.noise_seed": [i % 2 for i in range(12)]})
    assert swept_columns(runs) == []


def test_every_run_belongs_to_a_cell():
    swept = {"teacher.train.steps": (100.0, 200.0), "student.train.lr": (1e-3, 1e-2)}
    runs = fake_runs(swept=swept)
    cells = Cells.of(runs)
    found = itertools.chain.from_iterable(cells.select(runs, cell)["run_id"] for cell in cells.cells)
    assert set(found) == set(runs["run_id"])
    assert len(cells.cells) == 4
    assert cell_name(cells.cells[0]) == "student.train.lr = 0.001, teacher.train.steps = 100"


def imported(**fields) -> pd.DataFrame:
    """Students of files: each trait and base has one of its own."""
    runs = fake_runs(traits=("owl", "cat"), bases=2, arms=("imported",), **fields).assign(base_seed=np.nan)
    names = runs["trait"] + runs["student_base_seed"].astype(str)
    return runs.assign(**{"data.sha256": names, "data.size": names.map(len)})


def test_a_file_for_each_base_is_no_setting():
    runs = imported()
    assert runs["data.sha256"].nunique() == 4
    assert swept_columns(runs) == []
    summary = summarise(runs).summary.set_index("trait")
    assert list(summary.columns[:4]) == ["sweep", "world", "arm", "n_runs"]
    assert summary["n"].to_dict() == {"all": 2, "owl": 2, "cat": 2}


def test_a_file_for_each_base_and_setting_is_told_by_the_setting():
    runs = imported(swept={"student.train.lr": (1e-3, 1e-2), "data.rows": (10, 20)})
    runs["data.sha256"] += runs["data.rows"].astype(str)
    assert swept_columns(runs) == ["student.train.lr", "data.rows"]
    # Files that all bases share are what is compared.
    shared = runs.assign(**{"data.sha256": runs["data.rows"].astype(str)})
    assert swept_columns(shared) == ["student.train.lr", "data.rows", "data.sha256"]
    # So are several files of a base.
    assert swept_columns(runs.drop(columns="data.rows")) == ["student.train.lr", "data.sha256"]


def test_a_setting_that_goes_with_another_stays():
    runs = fake_runs(swept={"student.lora.rank": (2, 4, 8)})
    runs["student.lora.alpha"] = 2.0 * runs["student.lora.rank"]
    assert swept_columns(runs) == ["student.lora.rank", "student.lora.alpha"]
