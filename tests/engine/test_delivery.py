"""What the trackers are given."""

import io
import json

import numpy as np
import tiny_world
from computing import FakeTracker, compute
from etils import epath
from rich.console import Console
from tiny_world import FILTER, TRAIN, written

from subl_jax import specs
from subl_jax.engine.delivery import run_info
from subl_jax.engine.plan import plan_of
from subl_jax.engine.runner import Engine
from subl_jax.engine.settings import Settings
from subl_jax.engine.timing import GroupTiming
from subl_jax.storage.store import Store
from subl_jax.tracking.terminal import Progress


def test_every_student_is_tracked_with_its_whole_curve(sweep, tmp_path):
    tracker = FakeTracker()
    done = compute(sweep, tmp_path, tracker)
    ids = {specs.run_id(student): student for student in sweep}
    assert tracker.runs.keys() == tracker.finished.keys() == tracker.points.keys() == ids.keys()
    assert len(ids) == 12
    for run_id, student in ids.items():
        steps, stored = done.store.curves(student.key)
        assert [step for step, _ in tracker.points[run_id]] == steps.tolist() == [0, 2, 4, 6]
        trait = specs.trait_of(student)
        other = {"owl": "cat", "cat": "owl"}[trait]
        shown = {"target": stored[f"trait/{trait}"], "target/off_diagonal": stored[f"trait/{other}"]}
        shown["target/chance"] = stored[f"trait/{trait}"] / student.world.base_rates[trait]
        shown |= {name if "/" in name else f"training/{name}": values for name, values in stored.items()}
        assert {name for _, point in tracker.points[run_id] for name in point} == shown.keys()
        for name, values in shown.items():
            np.testing.assert_array_equal([point[name] for _, point in tracker.points[run_id]], values)
        summary, exit_code = tracker.finished[run_id]
        assert (summary["status"], exit_code) == ("ok", 0)
        assert summary["target_start"] == stored[f"trait/{specs.trait_of(student)}"][0]
        assert summary["target_end"] == stored[f"trait/{specs.trait_of(student)}"][-1]


def test_a_tracker_that_missed_a_stored_student_gets_it_later_and_once(sweep, tmp_path):
    compute(sweep[:3], tmp_path)
    tracker = FakeTracker(delivered=[specs.run_id(sweep[0])])
    done = compute(sweep[:3], tmp_path, tracker)
    assert done.timings == []
    assert tracker.finished.keys() == {specs.run_id(student) for student in sweep[1:3]}
    assert [step for step, _ in tracker.points[specs.run_id(sweep[1])]] == [0, 2, 4, 6]
    repeated = compute(sweep[:3], tmp_path, tracker)
    assert repeated.timings == [] and len(tracker.finished) == 2


def test_lost_students_are_tracked_as_such(tmp_path):
    base = tiny_world.base()
    starved = specs.Student(base, written(base, filter=FILTER.replace(max_value=0), budget=1.0), TRAIN, trait="owl")
    wild = specs.Student(base, written(base), TRAIN.replace(lr=1e30), trait="owl")
    tracker = FakeTracker()
    compute([starved, wild], tmp_path, tracker)
    assert tracker.finished[specs.run_id(starved)] == ({"status": "failed"}, 1)
    summary, exit_code = tracker.finished[specs.run_id(wild)]
    assert (summary["status"], exit_code) == ("diverged", 1)
    assert len(tracker.points[specs.run_id(wild)]) == 4 and specs.run_id(starved) not in tracker.points


def test_groups_computed_elsewhere_are_told_as_they_end(sweep, tmp_path):
    store, told = Store(tmp_path), []
    settings, progress = Settings(tracker="none"), Progress(Console(file=io.StringIO()))

    def elsewhere(groups, stored, ended):
        for group in groups:
            ended(GroupTiming(group.stage.name, len(group.nodes), "1 device"))
        return []

    Engine(epath.Path(tmp_path), "a sweep", store, settings, FakeTracker(), progress).compute(
        plan_of(sweep, store), elsewhere, lambda timing: told.append(timing.stage)
    )
    assert told == ["pretrain", "instil", "write", "distil"]


def test_a_run_knows_its_lineage(sweep):
    info = run_info("a sweep", sweep[1])
    assert (info.arm, info.trait, info.world, info.sweep) == ("cross_init", "owl", "tiny", "a sweep")
    assert info.config["student"]["train"]["lr"] == TRAIN.lr
    assert info.config["teacher"]["trait"] == "owl"
    assert info.name == "cross_init-owl-base1-0"
    json.dumps(info.config)
