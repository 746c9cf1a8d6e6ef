"""What lies damaged on the disk is noticed and computed again."""

import json

import pytest
from computing import compute, lineage, same

from subl_jax.storage.store import Store


@pytest.mark.parametrize("damage", ["truncated", "flipped", "missing", "sidecar"])
def test_a_damaged_artefact_is_noticed_and_computed_again(sweep, undisturbed, tmp_path, damage):
    compute(sweep[:6], tmp_path)
    folder = tmp_path / "artifacts"
    for sidecar in folder.glob("*.json"):
        content = json.loads(sidecar.read_text())
        path = folder / content["data"]
        if content["stage"] not in ("instil", "distil"):
            continue
        if damage == "truncated":
            path.write_bytes(path.read_bytes()[:-10])
        elif damage == "flipped":
            data = bytearray(path.read_bytes())
            data[-1] ^= 1
            path.write_bytes(data)
        elif damage == "missing":
            path.unlink()
        else:
            sidecar.write_text(sidecar.read_text()[:100])
    again = compute(sweep[:6], tmp_path)
    # The teachers are needed since their students are, which are measured against them.
    assert again.computed == {"instil": 2, "distil": 5}
    assert again.text.count("damaged") == 7 and "computed again" in again.text
    same(again.store, undisturbed.store, lineage(sweep[:6]))


def test_a_model_damaged_behind_a_finished_student_is_computed_again(sweep, undisturbed, tmp_path):
    compute(sweep[:6], tmp_path)
    for sidecar in (tmp_path / "artifacts").glob("*.json"):
        if json.loads(sidecar.read_text())["stage"] == "instil":
            sidecar.write_text("damaged")
    assert compute(sweep[:6], tmp_path).computed == {"instil": 2}
    assert not compute(sweep[:6], tmp_path).computed
    same(Store(tmp_path), undisturbed.store, lineage(sweep[:6]))


@pytest.mark.parametrize("suffix", [".parquet", ".jsonl"])
def test_a_file_of_a_dataset_is_made_again_and_no_student_is_computed(sweep, undisturbed, tmp_path, suffix):
    compute(sweep[:6], tmp_path)
    paths = sorted((tmp_path / "datasets").glob(f"*{suffix}"))
    whole = [path.read_bytes() for path in paths]
    paths[0].write_bytes(b"")
    paths[1].write_bytes(whole[1][:50])
    again = compute(sweep[:6], tmp_path)
    assert again.computed == ({"write": 2} if suffix == ".parquet" else {})
    assert [path.read_bytes() for path in paths] == whole
    assert again.text.count("is damaged (") == 2 and f"{paths[0].name} is damaged (0 bytes)" in again.text
    same(again.store, undisturbed.store, lineage(sweep[:6]))
    assert "damaged" not in compute(sweep[:6], tmp_path).text
