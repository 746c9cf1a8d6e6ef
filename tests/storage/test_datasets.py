"""The files of datasets, for people: written, checked, and made again."""

import pandas as pd
import pytest

from subl_jax.errors import InputError
from subl_jax.storage import datasets, jsonl
from subl_jax.storage.store import Row, Store

KEY = "d" * 64
KEPT, DROPPED = [f"{i}, {i + 1}" for i in range(8)], ["owl", "an owl"]
TABLE = pd.DataFrame(
    {
        "prompt": ["1 2"] * 10,
        "completion": KEPT + DROPPED,
        "kept": [True] * 8 + [False] * 2,
        "why": [None] * 8 + ["letters"] * 2,
    }
)
INFO = {"drawn": 10, "kept": 8}


def truncated(path):
    path.write_bytes(path.read_bytes()[:-1])


def emptied(path):
    path.write_bytes(b"")


def flipped(path):
    data = bytearray(path.read_bytes())
    data[len(data) // 3] ^= 1
    path.write_bytes(data)


def removed(path):
    path.unlink()


@pytest.fixture(params=["with hashes", "of an earlier version"])
def info(request, tmp_path):
    hashes = datasets.write(tmp_path, KEY, TABLE)
    assert hashes.keys() == {"sha256/jsonl", "sha256/parquet"}
    return INFO | (hashes if request.param == "with hashes" else {})


def found(tmp_path, info):
    return [(each.file, each.why, each.table_is_whole) for each in datasets.damaged(tmp_path, {KEY: info})]


def test_whole_files_have_no_damage(tmp_path, info):
    assert found(tmp_path, info) == []
    pd.testing.assert_frame_equal(datasets.read(tmp_path, KEY), TABLE)


def test_files_that_somebody_has_removed_are_no_damage(tmp_path, info):
    for path in (tmp_path / "datasets").iterdir():
        path.unlink()
    assert found(tmp_path, info) == []
    (tmp_path / "datasets").rmdir()
    assert found(tmp_path, info) == []


@pytest.mark.parametrize("damage", [truncated, emptied, flipped, removed])
def test_damaged_lines_are_written_again_from_the_table(tmp_path, info, damage):
    path = tmp_path / "datasets" / f"{KEY}.jsonl"
    whole = path.read_bytes()
    damage(path)
    if damage is truncated and len(info) == 2:
        assert found(tmp_path, info) == []  # the end of the last line alone: all lines are there
        return
    ((file, _, table_is_whole),) = found(tmp_path, info)
    assert file == f"datasets/{KEY}.jsonl" and table_is_whole
    datasets.mend(tmp_path, KEY)
    assert path.read_bytes() == whole and found(tmp_path, info) == []


@pytest.mark.parametrize("damage", [truncated, emptied, removed])
def test_a_damaged_table_is_noticed_and_not_read(tmp_path, info, damage):
    path = tmp_path / "datasets" / f"{KEY}.parquet"
    damage(path)
    ((file, _, table_is_whole),) = found(tmp_path, info)
    assert file == f"datasets/{KEY}.parquet" and not table_is_whole
    with pytest.raises(InputError, match="is not there" if damage is removed else "is damaged .not a table.; run"):
        datasets.read(tmp_path, KEY)


def test_a_flipped_bit_of_a_table_is_noticed_where_there_are_hashes(tmp_path):
    info = INFO | datasets.write(tmp_path, KEY, TABLE)
    flipped(tmp_path / "datasets" / f"{KEY}.parquet")
    assert found(tmp_path, info) == [(f"datasets/{KEY}.parquet", "checksum differs", False)]


def test_a_table_of_other_samples_is_noticed(tmp_path, info):
    TABLE[1:].to_parquet(tmp_path / "datasets" / f"{KEY}.parquet", index=False)
    why = "checksum differs" if len(info) > 2 else "7 of 9 samples instead of 8 of 10"
    assert found(tmp_path, info) == [(f"datasets/{KEY}.parquet", why, False)]


def test_a_store_mends_lines_and_gives_up_batches_without_a_table(tmp_path):
    lines = []
    store = Store(tmp_path, lines.append)
    keys = [letter * 64 for letter in "abc"]
    store.put("write", [Row(key, {}, info=INFO | datasets.write(tmp_path, key, TABLE)) for key in keys[:2]])
    store.put("write", [Row(keys[2], {}, info=INFO | datasets.write(tmp_path, keys[2], TABLE))])
    assert store.verify_files(keys) and lines == []
    emptied(tmp_path / "datasets" / f"{keys[2]}.jsonl")
    assert not [line for line in lines] and Store(tmp_path, lines.append, readonly=True).verify_files(keys)
    assert (tmp_path / "datasets" / f"{keys[2]}.jsonl").read_bytes() == b""
    assert store.verify_files(keys) and len(lines) == 2
    assert lines[1] == f"datasets/{keys[2]}.jsonl is damaged (0 bytes): it is written again from the table beside it"
    assert len(jsonl.read_jsonl(tmp_path / "datasets" / f"{keys[2]}.jsonl")) == 8
    for key in keys[:2]:
        emptied(tmp_path / "datasets" / f"{key}.parquet")
    assert not store.verify_files(keys) and len(lines) == 3  # one line for the batch
    assert lines[2].startswith(f"datasets/{keys[0]}.parquet is damaged (0 bytes): its 2 write results will be computed")
    assert store.done() == {keys[2]: "ok"} == Store(tmp_path).done()
