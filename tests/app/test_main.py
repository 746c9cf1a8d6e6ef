"""`python -m subl_jax`: its commands, and `show`."""

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


def screen(text: str) -> list[str]:
    """The lines, which a terminal of the usual 80 columns and 24 lines shows all at once, the prompt below them."""
    lines = text.rstrip("\n").splitlines()
    assert len(lines) < 24 and max(map(len, lines)) <= 80
    return lines


def test_help_names_every_command_and_fits_a_screen(capsys):
    assert program.main(["--help"]) == 0
    lines = screen(capsys.readouterr().out)
    purposes = dict(line.split(maxsplit=1) for line in lines if line.startswith("  "))
    assert list(purposes) == list(program.COMMANDS)
    assert all(text.endswith(".") for text in purposes.values())


@pytest.mark.parametrize("name", program.COMMANDS)
def test_each_command_has_its_help(name, capsys):
    assert program.main([name, "--help"]) == 0
    assert len(screen(capsys.readouterr().out)) > 3


def test_a_command_that_there_is_not_is_one_line(capsys):
    assert program.main(["swep"]) == 2
    assert capsys.readouterr().err == f"error: 'swep': no such command; one of {', '.join(program.COMMANDS)}\n"


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
