"""Datasets on the host: exactly as many samples as are needed, however they come, and data made elsewhere."""

import json

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from lineages import WORLD, dataset, student

from subl_jax import specs
from subl_jax.channels import numbers as filters
from subl_jax.channels.imported import imported, read_imported
from subl_jax.channels.numbers import NumbersFilter
from subl_jax.errors import InputError
from subl_jax.stages.collecting import Collector
from subl_jax.storage import datasets, jsonl

PROMPT = "continue commas 1 2 3 =>"
GOOD, BAD = "3, 41, 9", "3, owl, 9"


def rows(*completions):
    return WORLD.tokens([(PROMPT, completion) for completion in completions])


def collected(node, *rounds):
    collector = Collector(node)
    for samples in rounds:
        collector.add(samples)
    return collector


def numbered(verdicts):
    """One row per verdict, good ones kept by the filter and bad ones not; all good ones differ."""
    return rows(*[f"{i}, 7" if good else f"{i}, owl" for i, good in enumerate(verdicts)])


def test_what_is_kept_and_why_the_rest_is_not():
    node = dataset(size=2, filter=NumbersFilter(banned=(13,)))
    collector = collected(node, rows("1, 2", BAD, "13", "4, 5"))
    assert collector.enough and collector.shortfall() is None
    np.testing.assert_array_equal(collector.artefact()["samples"], rows("1, 2", "4, 5"))
    table = collector.table()
    assert table.columns.tolist() == ["prompt", "completion", "kept", "why"]
    assert table.completion.tolist() == ["1, 2", BAD, "13", "4, 5"] and set(table.prompt) == {PROMPT}
    assert table.kept.tolist() == [True, False, False, True] and table.kept.dtype == bool
    assert [None if pd.isna(why) else why for why in table.why] == [None, "characters", "banned", None]
    info = collector.info()
    assert (info["drawn"], info["kept"], info["kept_fraction"]) == (4, 2, 0.5)
    assert info["why/characters"] == info["why/banned"] == 1 and info["why/empty"] == 0


@given(st.lists(st.booleans(), min_size=1, max_size=40), st.integers(1, 12), st.integers(1, 10))
@settings(deadline=None, max_examples=100)
def test_a_dataset_ends_with_the_last_sample_it_needs(verdicts, size, round):
    node = dataset(size=size)
    samples = numbered(verdicts)
    collector = collected(node, *(samples[i : i + round] for i in range(0, len(samples), round)))
    kept = [i for i, good in enumerate(verdicts) if good][:size]
    drawn = kept[-1] + 1 if len(kept) == size else len(verdicts)
    assert collector.enough is (len(kept) == size)
    assert (collector.shortfall() is None) is collector.enough
    artefact = collector.artefact()["samples"]
    assert artefact.shape == (size, WORLD.length) and artefact.dtype == samples.dtype
    np.testing.assert_array_equal(artefact[: len(kept)], samples[kept])
    assert not artefact[len(kept) :].any()
    assert len(collector.table()) == collector.info()["drawn"] == drawn
    assert collector.table().kept.sum() == collector.info()["kept"] == len(kept)


@given(st.integers(1, 12), st.integers(1, 20))
@settings(deadline=None, max_examples=30)
def test_rounds_drawn_for_a_neighbour_leave_no_trace(size, extra):
    node = dataset(size=size)
    samples = numbered([i % 3 > 0 for i in range(40)])
    alone = collected(node, samples)
    beside = collected(node, samples, *[rows(GOOD, BAD)] * extra)
    np.testing.assert_array_equal(alone.artefact()["samples"], beside.artefact()["samples"])
    pd.testing.assert_frame_equal(alone.table(), beside.table())
    assert alone.info() == beside.info()


def test_too_few_kept_is_one_line():
    collector = collected(dataset(size=8, budget=2.5), rows(GOOD, BAD, BAD), rows(BAD, BAD, GOOD, BAD, BAD))
    line = collector.shortfall()
    assert "kept 2 of 8 samples (25.0%), 8 were wanted" in line and "budget (2.5)" in line and "\n" not in line
    assert collected(dataset(size=8), rows(BAD)).artefact()["samples"].sum() == 0


def test_files_of_a_dataset(tmp_path):
    node = dataset(size=2)
    collector = collected(node, rows(GOOD, BAD, "1\n2"))
    datasets.write(tmp_path, node.key, collector.table())
    folder = tmp_path / "datasets"
    assert sorted(path.name for path in folder.iterdir()) == [f"{node.key}.jsonl", f"{node.key}.parquet"]
    assert jsonl.read_jsonl(folder / f"{node.key}.jsonl") == [(PROMPT, GOOD), (PROMPT, "1\n2")]
    drawn = pd.read_parquet(folder / f"{node.key}.parquet")
    assert drawn.completion.tolist() == [GOOD, BAD, "1\n2"] and drawn.kept.tolist() == [True, False, True]
    assert drawn.why[1] == "characters" and drawn.why[[0, 2]].isna().all()


def test_files_of_a_dataset_of_which_nothing_was_kept_or_all(tmp_path):
    for node, completions in ((dataset(size=3), [BAD]), (dataset(size=2), [GOOD, GOOD])):
        table = collected(node, rows(*completions)).table()
        datasets.write(tmp_path, node.key, table)
        back = pd.read_parquet(tmp_path / "datasets" / f"{node.key}.parquet")
        assert back.completion.tolist() == completions


# --- made elsewhere ---


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "numbers.jsonl"
    jsonl.write_jsonl(path, [(PROMPT, GOOD), (PROMPT, "[1, 2]")])
    return path


def test_imported_data_is_what_the_file_holds(file):
    node = imported(file, WORLD)
    assert (node.of, node.size, node.path) == (WORLD, 2, str(file))
    np.testing.assert_array_equal(read_imported(node)["samples"], rows(GOOD, "[1, 2]"))
    assert specs.arm_of(student(data=node, trait="owl")) == "imported"


def test_what_was_kept_can_be_imported_again(tmp_path):
    node = dataset(size=2)
    collector = collected(node, rows(GOOD, BAD, "1; 2"))
    datasets.write(tmp_path, node.key, collector.table())
    again = imported(tmp_path / "datasets" / f"{node.key}.jsonl", WORLD)
    np.testing.assert_array_equal(read_imported(again)["samples"], collector.artefact()["samples"])


def test_imported_data_is_known_by_its_content_and_not_its_name(file, tmp_path):
    node = imported(file, WORLD)
    copy = tmp_path / "copy.jsonl"
    copy.write_bytes(file.read_bytes())
    assert imported(copy, WORLD).key == node.key
    jsonl.write_jsonl(copy, [(PROMPT, GOOD), (PROMPT, "[1, 3]")])
    assert imported(copy, WORLD).key != node.key


def test_a_file_that_changed_or_went_is_one_line(file):
    node = imported(file, WORLD)
    file.write_text(file.read_text() + json.dumps({"prompt": PROMPT, "completion": "8"}) + "\n")
    with pytest.raises(InputError, match="numbers.jsonl: has changed since the sweep was planned") as error:
        read_imported(node)
    assert "\n" not in str(error.value)
    file.unlink()
    with pytest.raises(InputError, match="numbers.jsonl: cannot read the dataset: No such file") as error:
        read_imported(node)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ('{"prompt": "continue commas 1 2 3 =>", "completion": "3, 1000"}', "numbers.jsonl:1: '1000' is not a"),
        ('{"prompt": "Hello", "completion": "3"}', "numbers.jsonl:1: 'Hello' is not a word of this language"),
        ('{"prompt": "continue", "completion": "3"}', "numbers.jsonl:1: a prompt of 2 and a completion of 2"),
        ('{"prompt": "continue"}', "numbers.jsonl:1: 'completion' is missing"),
        ("", "numbers.jsonl: no data"),
    ],
)
def test_a_file_of_another_language_is_one_line(file, text, line):
    file.write_text(text)
    with pytest.raises(InputError) as error:
        imported(file, WORLD)
    assert line in str(error.value) and "\n" not in str(error.value)


def test_no_file_is_one_line(tmp_path):
    with pytest.raises(InputError, match="nothing.jsonl: cannot read the dataset"):
        imported(tmp_path / "nothing.jsonl", WORLD)


def test_the_reasons_of_a_table_are_those_of_the_filter():
    completions = [GOOD, BAD, "1, 2; 3", "7, ", "", "1 2 3"]
    table = collected(dataset(size=6), rows(*completions)).table()
    expected = [filters.reason(completion, NumbersFilter()) for completion in table.completion]
    assert [None if pd.isna(why) else why for why in table.why] == expected
