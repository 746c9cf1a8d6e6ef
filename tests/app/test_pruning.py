"""What a sweep does not need is removed, and all that it needs stays."""

import pytest
import tiny_world

from subl_jax.app import pruning, running
from subl_jax.engine.settings import Settings
from subl_jax.errors import InputError
from subl_jax.results import load
from subl_jax.storage.store import Store, lock
from subl_jax.tracking.terminal import Progress

SETTINGS = Settings(devices=1, lanes_a_batch=1, tracker="none")
SMALL = list(tiny_world.students(traits=("owl",)))
LARGE = list(tiny_world.students(traits=("owl", "cat")))


def run(students, workdir, settings=SETTINGS):
    return running.run(students, workdir, settings=settings, progress=Progress(plain=True)).results


def size(workdir):
    return sum(path.stat().st_size for path in workdir.rglob("*") if path.is_file())


@pytest.fixture
def workdir(tmp_path):
    run(LARGE, tmp_path)
    return tmp_path


def test_what_another_sweep_needs_goes_and_what_this_one_needs_stays(workdir):
    lines, before = [], size(workdir)
    counts = len(Store(workdir, readonly=True).done())
    would = pruning.prune(SMALL, workdir, dry_run=True, say=lines.append)
    assert size(workdir) == before and all(line.startswith("would remove ") for line in lines)
    freed = pruning.prune(SMALL, workdir, say=lines.append)
    assert freed == would > 0
    # Sidecars are not counted.
    assert before - size(workdir) >= freed
    assert lines[-1] == f"removed {freed:,} bytes in all"
    left = Store(workdir, readonly=True).done()
    assert 0 < len(left) < counts
    assert len(list((workdir / "datasets").glob("*.parquet"))) == 4  # two written by owls, two by bases
    again = run(SMALL, workdir)
    assert again.sweep["groups"] == [] and (again.runs.status == "ok").all()
    lines.clear()
    assert pruning.prune(SMALL, workdir, say=lines.append) == 0 and lines == ["removed 0 bytes in all"]


@pytest.mark.parametrize("keep", ["teachers", "curves"])
def test_parameters_go_as_asked(workdir, keep):
    before = size(workdir)
    freed = pruning.prune(LARGE, workdir, keep, say=lambda _: None)
    assert before - size(workdir) == pytest.approx(freed, abs=4096) and freed > 0  # sidecars grow by a word
    again = run(LARGE, workdir, SETTINGS.replace(keep=keep))
    assert again.sweep["groups"] == []
    run_id = again.runs.run_id[0]
    with pytest.raises(InputError, match=r"parameters of student .* were not kept \(config.engine.keep, --prune\)"):
        again.student(run_id)
    if keep == "teachers":
        assert again.base(run_id).params
    assert len(again.samples(run_id)) > 0


def test_what_is_left_to_compute_keeps_what_it_needs(workdir):
    new = [*LARGE, LARGE[0].replace(seed=9)]
    pruning.prune(new, workdir, "curves", say=lambda _: None)
    assert [group["stage"] for group in run(new, workdir).sweep["groups"]] == ["distil"]


def test_a_folder_without_a_sweep_is_one_line(tmp_path):
    with pytest.raises(InputError, match=r"^--workdir .*: nothing is stored there; give the --workdir of a sweep$"):
        pruning.prune(SMALL, tmp_path)


def test_a_sweep_that_runs_is_left_alone(workdir):
    with lock(workdir), pytest.raises(InputError, match="another sweep is running in it"):
        pruning.prune(SMALL, workdir)


def test_results_say_what_was_pruned(workdir):
    run_id = load(workdir).runs.query("trait == 'cat'").run_id.iloc[0]
    pruning.prune(SMALL, workdir, say=lambda _: None)
    with pytest.raises(InputError, match="it was pruned, or is damaged"):
        load(workdir).student(run_id)
