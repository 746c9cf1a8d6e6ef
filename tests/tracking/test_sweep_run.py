"""The sweep's own run: what it is given, of a stored sweep."""

import shutil

import golden_workdir
import pytest
from computing import FakeTracker

from subl_jax.engine.timing import GroupTiming
from subl_jax.results.load import load
from subl_jax.tracking.sweep_run import STEP, SweepRun, sweep_id


@pytest.fixture
def results(tmp_path):
    folder = shutil.copytree(golden_workdir.GOLDEN / "workdir", tmp_path / "workdir")
    (folder / "figures").mkdir()
    (folder / "figures" / "transfer-2.png").write_bytes(b"a picture")
    return load(folder)


def test_it_is_there_from_the_beginning_and_gets_a_row_per_group():
    tracker = FakeTracker()
    record = SweepRun(tracker, "traits", {"config": {"seeds": 2}, "settings": {"tracker": "wandb"}})
    (info,) = tracker.runs.values()
    assert (info.run_id, info.sweep, info.arm, info.step, info.appends) == (
        sweep_id("traits"),
        "traits",
        "sweep",
        STEP,
        True,
    )
    assert info.config == {"config": {"seeds": 2}, "settings": {"tracker": "wandb"}}
    for lanes in (2, 3):
        record.add(GroupTiming("distil", lanes, "1 device"))
    rows = tracker.points[info.run_id]
    assert [step for step, _ in rows] == [0, 1] and [row["groups/distil/lanes"] for _, row in rows] == [2, 3]
    assert not tracker.finished


def test_it_carries_what_the_report_has(results):
    tracker = FakeTracker()
    record = SweepRun(tracker, "traits", {})
    record.add(GroupTiming("distil", 3, "1 device"))
    record.finish(results)
    assert tracker.images == {"figures/transfer-2": b"a picture"}
    assert {"tables/summary", "tables/comparisons", "tables/students", "tables/datasets"} <= tracker.tables.keys()
    assert list(tracker.tables["tables/students"]["run_id"]) == list(results.runs["run_id"])
    samples = tracker.tables["tables/samples"]
    assert {"prompt", "completion", "kept", "why", "dataset", "teacher"} <= set(samples)
    assert 0 < samples.groupby("dataset").size().max() <= 8
    summary, exit_code = tracker.finished[sweep_id("traits")]
    assert "P(trait)" in summary["headline"] and summary["groups/lanes"] == 3
    assert summary["students"] == len(results.runs) and summary["links/report"].endswith("report.html")
    pooled = results.summary[(results.summary["trait"] == "all") & (results.summary["arm"] == "same_init")]
    assert summary["arms/same_init/target"] == pytest.approx(pooled["mean"].mean())
    assert "arms/same_init/off_diagonal" in summary
    assert exit_code == (0 if (results.runs["status"] == "ok").all() else 1)
