"""One sweep from specs to the results contract, and what it refuses."""

import errno
import fcntl
import io
import json
import math
import os
import pathlib
import re
import shutil

import jax
import numpy as np
import pandas as pd
import pytest
import tiny_world
from computing import FakeTracker
from etils import epath
from rich.console import Console
from tiny_world import FILTER, TRAIN, WORLD, written

import subl_jax
from subl_jax import specs
from subl_jax.app import contract, running
from subl_jax.engine.settings import Settings
from subl_jax.errors import InputError, StorageError
from subl_jax.results import wide_summary
from subl_jax.storage.store import lock
from subl_jax.tracking import sweep_run
from subl_jax.tracking.sweep_run import sweep_id
from subl_jax.tracking.terminal import Progress

FILES = ("runs.parquet", "curves.parquet", "summary.parquet", "comparisons.parquet", "datasets.parquet")
FILES += ("report.html", "sweep.json")
SETTINGS = Settings(devices=1, lanes_a_batch=4, tracker="none")


def run(students, workdir, **options):
    return running.run(students, workdir, **{"settings": SETTINGS, **options})


@pytest.fixture(scope="module")
def sweep():
    lost = specs.Student(tiny_world.base(), written(tiny_world.base()), TRAIN.replace(lr=1e30), trait="owl", arm="wild")
    return [*tiny_world.students(3), lost]


@pytest.fixture(scope="module")
def outcome(sweep, tmp_path_factory):
    config = {"seeds": 3, "nested": {"traits": ("owl", "cat")}, "object": FILTER}
    return run(sweep, tmp_path_factory.mktemp("sweep"), name="tiny", config=config)


@pytest.fixture
def runs(outcome):
    return outcome.results.runs


def test_every_file_of_the_contract_is_there_and_no_other(outcome):
    names = {path.name for path in outcome.results.workdir.iterdir()}
    assert names == {*FILES, "audits.parquet", "artifacts", "datasets", "figures", ".lock"}
    assert not list(pathlib.Path(outcome.results.workdir).rglob("*.tmp*"))


def test_one_row_per_student_with_its_whole_lineage(sweep, runs):
    assert len(runs) == len(sweep) == 19
    assert runs.run_id.is_unique and set(runs.run_id) == {specs.run_id(student) for student in sweep}
    assert runs.arm.value_counts().to_dict() == {"same_init": 6, "cross_init": 6, "control": 6, "wild": 1}
    for column in ("sweep", "world", "trait", "seed", "why", "student.train.lr", "teacher.until", "data.size"):
        assert column in runs
    assert (runs.sweep == "tiny").all() and (runs.world == "tiny").all()
    cross = runs[runs.arm == "cross_init"]
    assert (cross.base_seed != cross.student_base_seed).all()
    same = runs[runs.arm == "same_init"]
    assert (same.base_seed == same.student_base_seed).all()
    assert set(same["teacher.trait"]) == {"owl", "cat"}


def test_targets_are_the_ends_of_the_curves(runs, outcome):
    curves = outcome.results.curves.astype({"run_id": str, "metric": str})
    for _, row in runs[runs.status == "ok"].iterrows():
        curve = curves[(curves.run_id == row.run_id) & (curves.metric == f"trait/{row.trait}")].sort_values("step")
        assert curve.step.tolist() == [0, 2, 4, 6]
        assert (curve.value.iloc[0], curve.value.iloc[-1]) == (row.target_start, row.target_end)
        assert 0 < row.kept_fraction <= 1
    assert set(curves.metric) == {
        "loss",
        "kl",
        "cosine",
        "target",
        *(f"{k}/{t}" for k in ("trait", "rate") for t in WORLD.traits),
    }


def test_students_of_other_teachers_are_beside_each(runs, outcome):
    curves = outcome.results.curves.astype({"run_id": str, "metric": str})
    assert runs[runs.arm == "control"].others_end.isna().all()
    for _, row in runs[runs.arm.isin(["same_init", "cross_init"])].iterrows():
        other = runs[(runs.arm == row.arm) & (runs.base_seed == row.base_seed) & (runs.trait != row.trait)].iloc[0]
        curve = curves[(curves.run_id == other.run_id) & (curves.metric == f"trait/{row.trait}")].sort_values("step")
        assert row.others_end == curve.value.iloc[-1]
    summary = wide_summary(outcome.results.summary, outcome.results.comparisons)
    assert summary[summary.arm == "same_init"].pairs_others.tolist() == [3, 3, 3]


def test_an_untrained_student_is_its_base_whoever_taught_it(runs):
    starts = runs[runs.status == "ok"].groupby(["student_base_seed", "trait"]).target_start
    assert (starts.max() == starts.min()).all()


def test_a_diverged_student_is_a_row_with_a_reason(runs, outcome):
    (row,) = [row for _, row in runs.iterrows() if row.status != "ok"]
    assert (row.arm, row.status, row.why) == ("wild", "diverged", "its loss is not a finite number from step 2 on")
    assert not outcome.all_ok
    assert re.fullmatch(
        r"1 of 19 runs are not ok: 1 diverged; the first, \w+ \(wild, owl\): its loss .*", outcome.lines[-1]
    )


def test_the_summary_compares_the_arms(outcome):
    summary = wide_summary(outcome.results.summary, outcome.results.comparisons)
    assert {"owl", "cat"} <= set(summary.trait)
    row = summary[(summary.arm == "same_init") & (summary.trait == "owl")].iloc[0]
    assert row["n"] == 3 and row.ci_low <= row["mean"] <= row.ci_high
    assert np.isfinite(row.diff_cross_init) and np.isfinite(row.diff_control)


def test_what_teachers_wrote_is_listed_once(outcome):
    datasets = outcome.results.datasets
    assert len(datasets) == 9  # six of teachers, three of bases
    assert datasets.trait.isna().sum() == 3
    assert ((datasets.kept_fraction > 0) & (datasets.kept_fraction <= 1)).all()


def test_the_sweep_says_how_it_was_made(outcome):
    sweep = json.loads((outcome.results.workdir / "sweep.json").read_text())
    assert sweep == outcome.results.sweep
    assert sweep["sweep"] == "tiny"
    assert sweep["config"]["seeds"] == 3 and sweep["config"]["nested"]["traits"] == ["owl", "cat"]
    assert isinstance(sweep["config"]["object"], str)  # what JSON has no form for is told in words
    assert sweep["settings"]["lanes_a_batch"] == 4
    assert {"jax", "numpy", "subl_jax", "python"} <= sweep["versions"].keys()
    assert [group["stage"] for group in sweep["groups"]] == ["pretrain", "instil", "write", "distil"]
    for group in sweep["groups"]:
        assert group["compile_seconds"] > 0 and group["run_seconds"] > 0 and group["lane_steps_per_second"] > 0
    assert sweep["base_rate"] == WORLD.base_rates
    assert sweep["devices"] == ["cpu:cpu"] * 4
    assert sweep["seconds"] > 0 and sweep["reused_nodes"] == 0


def test_a_second_run_writes_the_same_tables(sweep, outcome):
    before = {name: outcome.results.workdir.joinpath(f"{name}.parquet").read_bytes() for name in ("runs", "curves")}
    left = outcome.results.workdir / "curves.parquet.tmp-0123456789ab"
    left.write_text("of a killed process")
    again = run(sweep, outcome.results.workdir, name="tiny")
    assert not left.exists()
    assert again.results.sweep["groups"] == []
    assert again.results.sweep["reused_nodes"] == sum(g["lanes"] for g in outcome.results.sweep["groups"])
    (earlier,) = again.results.sweep["earlier"]
    assert earlier["groups"] == outcome.results.sweep["groups"]
    for name, content in before.items():
        assert outcome.results.workdir.joinpath(f"{name}.parquet").read_bytes() == content
    pd.testing.assert_frame_equal(again.results.summary, outcome.results.summary)


class Remarked(specs.Notes, tiny_world.TinyWorld):
    notes = ("the model: has no chat template",)


def test_what_worlds_have_to_say_is_said_before_anything_is_computed(tmp_path):
    said = []

    class Listening(Progress):
        def warn(self, text):
            said.append(text)

    class Enough(Exception):
        pass

    def stop(*arguments, **options):
        raise Enough

    with pytest.MonkeyPatch.context() as patch, pytest.raises(Enough):
        patch.setattr(running, "_tracker", stop)
        run(list(tiny_world.students(world=Remarked())), tmp_path, progress=Listening(Console(quiet=True)))
    assert said == ["the model: has no chat template"]


def test_a_student_given_twice_is_one_run(tmp_path):
    student = next(tiny_world.students())
    results = run([student, student.replace(), student], tmp_path).results
    assert len(results.runs) == 1
    assert len(results.curves) == 4 * 10 - 2  # no loss and no cosine before the first step


def test_the_package_runs_and_loads(tmp_path):
    results = subl_jax.run(iter([next(tiny_world.students())]), tmp_path / "deep" / "er", settings=SETTINGS)
    assert results.runs.status.tolist() == ["ok"]
    pd.testing.assert_frame_equal(subl_jax.load(tmp_path / "deep" / "er").runs, results.runs)


def test_all_students_may_fail_and_the_tables_are_there(tmp_path):
    base = tiny_world.base()
    starved = written(base, filter=FILTER.replace(max_value=0), budget=1.0)
    outcome = run([specs.Student(base, starved, TRAIN, trait="owl")], tmp_path)
    (row,) = outcome.results.runs.to_dict("records")
    assert row["status"] == "failed" and math.isnan(row["target_end"])
    assert len(outcome.results.curves) == 0 and len(outcome.results.datasets) == 1
    assert (tmp_path / "report.html").exists()
    assert "1 failed" in outcome.lines[-1] and "the filter kept" in outcome.lines[-1]


# --- what is refused ---


@pytest.mark.parametrize(
    ("students", "line"),
    [
        ([], "yields no students"),
        ([tiny_world.base()], "yields a Base; expected only specs.Student"),
        ([specs.Student(tiny_world.base(), written(tiny_world.base()), TRAIN)], "no trait behind it"),
    ],
    ids=["none", "another spec", "a control without a trait"],
)
def test_bad_students_are_refused_before_anything_is_made(students, line, tmp_path):
    with pytest.raises(InputError, match=line):
        run(students, tmp_path / "runs")
    assert not (tmp_path / "runs").exists()


def test_a_workdir_that_is_a_file_is_refused(tmp_path):
    (tmp_path / "file").write_text("mine")
    with pytest.raises(InputError, match="--workdir .*file"):
        run(tiny_world.students(), tmp_path / "file")
    assert (tmp_path / "file").read_text() == "mine"


def test_a_workdir_in_use_is_refused(tmp_path):
    with lock(tmp_path), pytest.raises(InputError, match="another sweep is running in it"):
        run(tiny_world.students(), tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {".lock"}


# --- storage ---


class FullDisk:
    """From the n-th file on, no file can be put in its place."""

    def __init__(self, monkeypatch, after):
        self.left, self.replace = after, os.replace
        monkeypatch.setattr(os, "replace", self)

    def __call__(self, source, target):
        self.left -= 1
        if self.left < 0:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return self.replace(source, target)


@pytest.mark.parametrize("after", [0, 5, 12])
def test_a_full_disk_is_one_line_and_what_is_stored_serves_the_next_run(tmp_path, monkeypatch, outcome, after):
    students = list(tiny_world.students(3))[:3]
    with monkeypatch.context() as patch:
        FullDisk(patch, after)
        with pytest.raises(StorageError) as raised:
            run(students, tmp_path)
    line = str(raised.value)
    assert "\n" not in line and "No space left on device; free some space" in line and str(tmp_path) in line
    assert not (tmp_path / "sweep.json").exists()
    assert not list(tmp_path.rglob("*.tmp*"))
    stored = len(list((tmp_path / "artifacts").glob("*.json"))) if (tmp_path / "artifacts").exists() else 0
    assert (stored > 0) == (after >= 5)
    again = run(students, tmp_path).results
    assert len(again.sweep["groups"]) <= 4
    mine = outcome.results.runs.set_index("run_id").loc[again.runs.run_id]
    np.testing.assert_allclose(again.runs.target_end, mine.target_end, rtol=1e-4)


def test_what_a_killed_process_left_half_written_is_removed(tmp_path):
    left = [tmp_path / name for name in ("runs.parquet.tmp-0123456789ab", "datasets/k.jsonl.tmp-ab", "figures/x.tmp-1")]
    mine = [tmp_path / name for name in ("notes.tmp", "datasets/mine.csv", "my.tmp-folder/x")]
    for path in [*left, *mine]:
        path.parent.mkdir(exist_ok=True)
        path.write_text("")
    running.remove_leftovers(epath.Path(tmp_path))
    assert not any(path.exists() for path in left) and all(path.exists() for path in mine)


def test_a_profile_is_of_some_steps_of_the_largest_group(tmp_path, capsys):
    run(list(tiny_world.students(2))[:1], tmp_path, profile=True)
    traces = list((tmp_path / "profile").rglob("*.xplane.pb"))
    assert len(traces) == 1 and list((tmp_path / "profile").rglob("perfetto_trace.json.gz"))
    assert re.findall(r"(.*) traced in ", capsys.readouterr().out) == ["pretrain: 2 steps"]


def test_a_profile_is_also_of_teachers_that_need_no_steps(tmp_path):
    base = tiny_world.base(steps=0)
    train = tiny_world.TRAIN.replace(steps=60, evals=10)
    teacher = specs.Teacher(base, "owl", train, until=1e-6)
    run([specs.Student(base, tiny_world.written(teacher), tiny_world.TRAIN)], tmp_path, profile=True)
    assert len(list((tmp_path / "profile").rglob("*.xplane.pb"))) == 1


def test_a_profile_is_not_of_other_machines(tmp_path):
    with pytest.raises(InputError, match="--profile: .* without --launcher=ray"):
        run(tiny_world.students(1), tmp_path, profile=True, fleet=object())


def test_packages_that_are_not_there_have_no_version():
    assert running.installed("jax", "no-such-package") == {"jax": jax.__version__}


def test_the_sweep_says_how_its_metrics_are_called(outcome):
    metrics = outcome.results.sweep["metrics"]
    assert metrics["kl"] == {"label": "KL to the teacher", "unit": "", "drawn": "curve", "zero": False, "log": False}
    assert {"loss", "cosine"} <= metrics.keys()


def test_a_bucket_is_named_before_it_is_asked(sweep, monkeypatch, capsys):
    """Without credentials an object store's client may look for them for half a minute."""

    def refuse(path):
        assert f"opening {path}" in capsys.readouterr().out
        raise InputError("no credentials")

    monkeypatch.setattr(running, "open_workdir", refuse)
    with pytest.raises(InputError, match="no credentials"):
        running.run(sweep, "gs://nowhere/out")


def test_a_report_that_fails_costs_a_line_and_no_result(sweep, outcome, monkeypatch):
    def fail(*_, **__):
        raise RuntimeError("no\ntemplate")

    monkeypatch.setattr(contract.report, "write_report", fail)
    again = run(sweep, outcome.results.workdir, name="tiny")
    assert again.lines[-1] == "warning: report.html could not be written, the tables are: RuntimeError: no template"
    pd.testing.assert_frame_equal(again.results.runs, outcome.results.runs)


@pytest.fixture
def tracked(monkeypatch):
    tracker = FakeTracker()
    monkeypatch.setattr(running, "make_tracker", lambda kind, **options: tracker)
    return tracker


def test_the_sweeps_own_run_holds_the_report(sweep, outcome, tracked, tmp_path):
    again = shutil.copytree(outcome.results.workdir, tmp_path / "copy")
    run(sweep, again, name="tiny", config={"seeds": 3})
    own = sweep_id("tiny")
    assert next(iter(tracked.runs)) == own == list(tracked.finished)[-1]
    assert tracked.runs[own].config["config"] == {"seeds": 3} and "versions" in tracked.runs[own].config
    assert tracked.images.keys() == {f"figures/{path.stem}" for path in (again / "figures").iterdir()}
    assert tracked.finished[own][0]["headline"]
    # Once delivered, it is opened again only for something new.
    opened = len(tracked.runs)
    tracked.runs.clear()
    run(sweep, again, name="tiny")
    assert opened > 1 and not tracked.runs


def test_a_fault_of_the_sweeps_own_run_costs_a_line_and_no_more(sweep, outcome, tracked, tmp_path, monkeypatch):
    def broken(results):
        raise ValueError("a table of an odd form")

    monkeypatch.setattr(sweep_run, "tables_of", broken)
    output = io.StringIO()
    again = shutil.copytree(outcome.results.workdir, tmp_path / "copy")
    found = run(sweep, again, name="tiny", progress=Progress(Console(file=output, width=200)))
    assert len(found.results.runs) == len(sweep)
    assert "the sweep's own run lacks its tables: ValueError: a table of an odd form" in output.getvalue()


def test_a_file_system_without_flock_serves(sweep, outcome, tmp_path, monkeypatch):
    def flock(*_):
        raise OSError(errno.ENOSYS, "Function not implemented")

    monkeypatch.setattr(fcntl, "flock", flock)
    output = io.StringIO()
    again = shutil.copytree(outcome.results.workdir, tmp_path / "copy")
    (again / ".lock").unlink(missing_ok=True)
    (again / "runs.parquet").unlink()
    found = run(sweep, again, name="tiny", progress=Progress(Console(file=output, width=200)))
    assert len(found.results.runs) == len(sweep)
    assert "warning" not in output.getvalue() and not (again / ".lock").exists()


def test_a_project_that_wandb_refuses_is_told_before_anything_is_computed(sweep, tmp_path):
    with pytest.raises(InputError, match="config.project = 'a:b': holds :"):
        run(sweep, tmp_path, settings=SETTINGS.replace(tracker="wandb", project="a:b"))
    assert not list(tmp_path.glob("artifacts/*"))
