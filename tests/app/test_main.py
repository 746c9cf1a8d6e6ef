"""`python -m subl_jax`: its commands, and `show`."""

import importlib.util
import subprocess
import sys

import pytest
import tiny_world

import subl_jax
from subl_jax import __main__ as program
from subl_jax import specs


@pytest.fixture(scope="module")
def workdir(tmp_path_factory):
    folder = tmp_path_factory.mktemp("shown") / "out"
    students = tiny_world.students(2, ("owl",), train=specs.Train(steps=0, evals=1, batch=8, lr=0.1))
    subl_jax.run(students, folder)
    return folder


def test_help_names_every_command_and_fits_a_screen(capsys):
    assert program.main(["--help"]) == 0
    text = capsys.readouterr().out
    assert all(f"    {name}" in text for name in program.COMMANDS) and len(text.splitlines()) < 25


@pytest.mark.parametrize("name", program.COMMANDS)
def test_each_command_has_its_help(name, capsys):
    if importlib.util.find_spec(program.COMMANDS[name]) is None:
        pytest.skip("comes in a branch of its own")
    assert program.main([name, "--help"]) == 0
    assert 3 < len(capsys.readouterr().out.splitlines()) < 30


def test_a_command_that_there_is_not_is_one_line(capsys):
    assert program.main(["swep"]) == 2
    assert capsys.readouterr().err == "error: 'swep': no such command; one of sweep, export, dashboard, show, tokens\n"


def test_a_mistake_of_a_command_is_its_own_line_and_status(capsys):
    assert program.main(["sweep", "--config", "nowhere.py"]) == 2
    assert "no such file" in capsys.readouterr().err


def test_show_gives_the_tables_of_a_finished_sweep_again(workdir, capsys):
    before = sorted(path.name for path in workdir.rglob("*"))
    assert program.main(["show", str(workdir)]) == 0
    out = capsys.readouterr().out
    assert "P(trait) after training" in out and "owl" in out and "report.html" in out
    assert sorted(path.name for path in workdir.rglob("*")) == before


@pytest.mark.parametrize("arguments", [(), ("a", "b"), ("--all",), ("nowhere",)], ids=str)
def test_show_refuses_what_is_no_workdir_in_one_line(arguments, capsys):
    assert program.main(["show", *arguments]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ") and error.count("\n") == 1


def test_a_file_where_one_is_hides_no_package(tmp_path):
    (tmp_path / "absl.py").write_text("raise SystemExit('the wrong one')")
    script = [sys.executable, "-m", "subl_jax", "sweep", "--config", "nowhere.py"]
    done = subprocess.run(script, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 2 and "no such file" in done.stderr, done.stderr
