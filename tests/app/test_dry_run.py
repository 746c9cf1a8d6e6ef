"""The plan, printed: what it says, and that it does nothing."""

import io

import jax
import pytest
import tiny_world
from rich.console import Console
from tiny_world import TRAIN, WORLD, written

from subl_jax import specs
from subl_jax.app import dry_run, running
from subl_jax.channels.imported import imported
from subl_jax.engine import lanes
from subl_jax.engine.plan import make_plan
from subl_jax.engine.settings import Settings
from subl_jax.stages import input_shapes

SETTINGS = Settings(devices=1, lanes_a_batch=4, tracker="none")


def show(students, workdir, settings=SETTINGS, **options):
    output = io.StringIO()
    dry_run.show(Console(file=output, width=160), students, workdir, settings, **options)
    return output.getvalue()


def cells(text, first):
    """The cells of the table rows that begin with `first`."""
    rows = [[cell.strip() for cell in line.split("│")[1:-1]] for line in text.splitlines() if "│" in line]
    return [row for row in rows if row[0] == first]


@pytest.fixture
def computed(tmp_path):
    """A workdir in which the first student is stored."""
    running.run(list(tiny_world.students())[:1], tmp_path, settings=SETTINGS)
    return tmp_path


@pytest.fixture
def never(monkeypatch):
    """From here on, nothing may be compiled."""

    def compile_program(*arguments):
        raise AssertionError("a dry run compiles nothing")

    monkeypatch.setattr(lanes, "compile_program", compile_program)


@pytest.mark.parametrize("verbose", [False, True])
def test_all_is_there_to_compute_in_a_new_workdir_that_is_not_made(tmp_path, never, verbose):
    text = show(list(tiny_world.students()), tmp_path / "runs", verbose=verbose)
    assert not (tmp_path / "runs").exists()
    assert "12 runs" in text
    for stage, count in {"pretrain": 2, "instil": 4, "write": 6, "distil": 10}.items():
        (nodes, group) = cells(text, stage)
        assert nodes == [stage, str(count), "0"]
        layout = lanes.default_layout(count, 1, 0, 4)
        assert group[3:5] == [str(layout.lanes), str(-(-count // layout.lanes))]
        assert (str(layout) in text) is verbose
    assert cells(text, "pretrain")[1][1] == "2 bases"
    assert cells(text, "write")[1][1:3] == ["6 datasets", "16 samples"]
    assert cells(text, "distil")[1][1:3] == ["10 students", "6 steps"]
    assert "FLOP in all" in text and "lane" not in text


class Remarked(specs.Notes, tiny_world.TinyWorld):
    notes = ("the model: has no chat template",)


def test_what_worlds_have_to_say_is_said_once(tmp_path, never):
    text = show(list(tiny_world.students(world=Remarked())), tmp_path / "runs")
    assert text.count("warning: the model: has no chat template") == 1
    assert "warning" not in show(list(tiny_world.students()), tmp_path / "runs")


def test_what_is_stored_is_told_and_left_as_it_is(computed, never):
    students = list(tiny_world.students())
    before = {path: path.stat().st_mtime_ns for path in computed.rglob("*")}
    assert "Nothing is left to compute." in show(students[:1], computed)
    text = show(students, computed)
    assert cells(text, "pretrain")[0] == ["pretrain", "1", "1"]
    assert cells(text, "distil")[0] == ["distil", "9", "1"]
    assert {path: path.stat().st_mtime_ns for path in computed.rglob("*")} == before


def test_damage_is_told_and_left_as_it_is(computed, never):
    for path in (computed / "artifacts").glob("*.safetensors"):
        path.write_bytes(path.read_bytes()[:-1])
    before = sorted((computed / "artifacts").iterdir())
    text = show(list(tiny_world.students())[:1], computed)
    assert "is damaged" in text and "computed again" in text
    assert cells(text, "distil")[0] == ["distil", "1", "0"]
    assert sorted((computed / "artifacts").iterdir()) == before


def test_imported_data_is_not_computed(tmp_path, never):
    path = tmp_path / "numbers.jsonl"
    path.write_text('{"prompt": "1", "completion": "2 3"}\n' * 8)
    student = specs.Student(tiny_world.base(), imported(path, WORLD), TRAIN, trait="owl")
    text = show([student], tmp_path / "runs")
    assert cells(text, "imported data") == [["imported data", "0", "1"]]


def test_memory_is_that_of_the_state_and_inputs_of_a_batch(tmp_path):
    base = tiny_world.base()
    student = specs.Student(base, written(base, size=100), TRAIN, trait="owl")
    group = make_plan([student], ()).groups[-1]
    assert group.stage.name == "distil"
    program = lanes.compile_program(group.stage, student, lanes.Layout(1, 1, 1), input_shapes(student))
    held = sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves((program.state, input_shapes(student))))
    assert dry_run.bytes_a_lane(group) == held


@pytest.mark.parametrize(
    ("count", "text"), [(0, "0 B"), (1023, "1.02e+03 B"), (2048, "2 KiB"), (3 * 2**20, "3 MiB"), (5 * 2**40, "5 TiB")]
)
def test_bytes_in_words(count, text):
    assert dry_run._bytes(count) == text


def test_a_home_directory_may_be_written_short(computed, never, monkeypatch):
    monkeypatch.setenv("HOME", str(computed.parent))
    assert "Nothing is left to compute." in show(list(tiny_world.students())[:1], f"~/{computed.name}")
