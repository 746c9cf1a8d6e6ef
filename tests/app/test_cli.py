"""The command line: what it does, and the one line it says when it cannot."""

import json
import os
import pathlib
import re
import shutil
import subprocess
import sys

import pandas as pd
import pytest
import tiny_world
from few import few

from subl_jax.app import cli
from subl_jax.engine import lanes
from subl_jax.errors import InputError
from subl_jax.storage import jsonl
from subl_jax.storage.store import lock
from subl_jax.tracking import final_table

ROOT = pathlib.Path(__file__).parents[2]
TESTS = ROOT / "tests"
TINY = TESTS / "tiny_sweep.py"
TRAITS = ROOT / "sweeps" / "traits.py"

HEAD = """
from ml_collections import ConfigDict
from subl_jax import specs
def get_config():
    return ConfigDict({"number": 1, "share": 0.5, "flag": True, "names": ("a", "b"), "list": [1], "none": None})
"""


def launched(*arguments, cwd=None, **environment):
    """`python launch/sweep.py …` as a process of its own."""
    path = os.pathsep.join([str(ROOT), str(TESTS)])
    return subprocess.run(
        [sys.executable, str(ROOT / "launch" / "sweep.py"), *map(str, arguments)],
        cwd=cwd,
        env={**os.environ, "PYTHONPATH": path, "WANDB_SILENT": "true", **environment},
        capture_output=True,
        text=True,
        timeout=900,
    )


@pytest.fixture
def here(tmp_path, monkeypatch, capsys):
    """The command in this process and in an empty folder; gives its status, output and errors."""
    monkeypatch.chdir(tmp_path)

    def run(*arguments):
        status = cli.main([str(argument) for argument in arguments])
        said = capsys.readouterr()
        return status, said.out, said.err

    return run


@pytest.fixture
def refused(tmp_path, monkeypatch, capsys):
    """Runs a command line that must be refused, in an empty folder; gives the one line it says."""
    folder = tmp_path / "cwd"
    folder.mkdir()
    monkeypatch.chdir(folder)

    def run(*arguments, status=2):
        assert cli.main([str(argument) for argument in arguments]) == status
        said = capsys.readouterr()
        assert said.out == ""
        assert said.err.startswith("error: ") and said.err.endswith("\n") and said.err.count("\n") == 1
        assert list(folder.iterdir()) == []
        return said.err[len("error: ") : -1]

    return run


def file(folder, text, name="mine.py"):
    path = folder / name
    path.write_text(text)
    return path


# --- bad input ---


@pytest.mark.parametrize(
    ("argument", "line"),
    [
        ("--config.sedes=3", "--config.sedes: no such setting; did you mean 'seeds'?"),
        ("--config.train.step=3", "--config.train.step: no such setting; did you mean 'train.steps'?"),
        ("--config.engine.widht=3", "--config.engine.widht: no such setting; did you mean 'engine.width'?"),
        ("--config.train=3", "--config.train: no such setting"),
        ("--config.seeds=two", "--config.seeds=two: invalid literal for int() with base 10: 'two'; expected int"),
        ("--config.seeds=2.5", "expected int"),
        ("--config.train.lr=fast", "expected float"),
        ("--config.wild=maybe", "expected bool"),
        ("--config.seeds", "Missing value for flag --config.seeds"),
        ("--config.seeds=0", "got 0 base seed"),
        ("--config.seeds=1", "cross_init pairs each base seed with another: got 1 base seed; give at least 2"),
        ("--config.traits=()", "tiny_sweep.py: sweep() yields no students"),
        ("--config.traits=('owl','caat')", "Teacher.trait = 'caat': did you mean 'cat'? one of owl, cat, oak"),
        ("--config.train.lr=-1", "Train.lr = -1.0: must be at least 0.0"),
        ("--config.train.lr=nan", "Train.lr = nan: expected a finite number"),
        ("--config.train.evals=4", "Train.evals = 4: must divide steps = 6"),
        ("--config.tracker=tensorboard", "config.tracker = 'tensorboard': must be one of ('wandb', 'none')"),
        ("--config.engine.width=-1", "config.engine.width = -1: must be at least 0"),
        ("--wrokdir=x", "Unknown command line flag 'wrokdir'. Did you mean: workdir ?"),
        ("--dry_run=maybe", "--dry_run=maybe"),
        ("--config.engine.keep=some", "config.engine.keep = 'some': must be one of ('all', 'teachers', 'curves')"),
        ("--prune", "--workdir runs/tiny_sweep: nothing is stored there"),
        ("--launcher=slurm", "--launcher=slurm: value should be one of <local|ray>"),
        ("--ray_address=head:6379", "--ray_address=head:6379: is for --launcher=ray; add that, or leave this out"),
        ("stray", "'stray': not understood; options begin with --"),
        ("--config=other.py", "expected one --config FILE, got 2"),
    ],
)
def test_a_mistake_in_an_argument_is_one_line(refused, argument, line):
    assert line in refused("--config", TINY, argument)


@pytest.mark.parametrize(
    ("argument", "line"),
    [
        ("--config.world.heads=5", "Config.heads = 5: must divide width = "),
        ("--config.traits=('owl','unicorn')", "Teacher.trait = 'unicorn': one of owl, "),
        ("--config.seeds=1", "give at least 2"),
        ("--config.targets=firm", "Student.targets = 'firm': must be one of"),
    ],
)
def test_the_default_sweep_refuses_what_its_world_cannot_be(refused, argument, line):
    assert line in refused("--config", TRAITS, argument)


@pytest.mark.parametrize("arguments", [(), ("--workdir", "x"), ("--config",), ("--config=",)], ids=str)
def test_without_a_sweep_file_the_line_says_how(refused, arguments):
    assert refused(*arguments) == "expected one --config FILE, got 0; for example --config sweeps/traits.py"


def test_a_missing_sweep_file_is_answered_with_the_nearest(refused):
    line = refused("--config", ROOT / "sweeps" / "trait.py")
    assert "no such file; did you mean" in line and "sweeps/traits.py" in line
    assert refused("--config", "nowhere/at/all.py") == "--config nowhere/at/all.py: no such file"
    assert "no such file" in refused("--config", ROOT / "sweeps")


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("def get_config(:\n    pass\n", "mine.py, line 1: invalid syntax"),
        (
            "import nosuchmodule\n",
            "mine.py, line 1: import failed: ModuleNotFoundError: No module named 'nosuchmodule'",
        ),
        ("", "mine.py: has no get_config(); a sweep file has get_config() and sweep(config)"),
        (HEAD, "mine.py: has no sweep()"),
        ("sweep = 1\ndef get_config(): pass\n", "mine.py: has no sweep()"),
        ("def get_config(): return {}\ndef sweep(c): pass\n", "get_config() gives a dict, expected an ml_collections"),
        ("def get_config(): 1 / 0\ndef sweep(c): pass\n", "mine.py, line 1: get_config failed: ZeroDivisionError"),
        (HEAD + "def sweep(config): return iter(())\n", "mine.py: sweep() yields no students; it must yield at least"),
        (
            HEAD + "def sweep(config): return [config]\n",
            "mine.py: sweep() yields a ConfigDict; expected only specs.Student",
        ),
        (HEAD + "def sweep(config): pass\n", "mine.py: sweep() gives a NoneType; expected it to yield specs.Student"),
        (HEAD + "def sweep(config):\n    yield config.typo\n", "mine.py, line 7: sweep failed: AttributeError"),
        (
            HEAD + "def sweep(config):\n    raise RuntimeError('two\\nlines')\n",
            "line 7: sweep failed: RuntimeError: two lines",
        ),
        (
            HEAD + "def sweep(config):\n    yield specs.Train(steps=-1, batch=1)\n",
            "Train.steps = -1: must be at least 0",
        ),
        (
            "from ml_collections import ConfigDict\ndef get_config(): return ConfigDict({'engine': {'speed': 1}})\n"
            "def sweep(config): pass\n",
            "config.engine.speed: no such setting; one of devices",
        ),
        (
            "from ml_collections import ConfigDict\ndef get_config(): return ConfigDict({'engine': 1})\n"
            "def sweep(config): pass\n",
            "config.engine is a int, expected a ConfigDict",
        ),
    ],
)
def test_a_mistake_in_a_sweep_file_is_one_line(refused, tmp_path, text, line):
    assert line in refused("--config", file(tmp_path, text))


def test_a_sweep_file_is_named_with_its_line_by_a_relative_path_too(tmp_path, monkeypatch, capsys):
    file(tmp_path, HEAD + "def sweep(config):\n    raise RuntimeError('boom')\n")
    monkeypatch.chdir(tmp_path)
    assert cli.main(["--config", "mine.py"]) == 2
    assert capsys.readouterr().err == "error: --config mine.py, line 7: sweep failed: RuntimeError: boom\n"


@pytest.mark.parametrize(
    ("argument", "line"),
    [
        ("--config.list=3", "--config.list: a list cannot be set here, only int, float, bool, str, tuple"),
        ("--config.none=3", "--config.none: a NoneType cannot be set here, only int, float, bool, str, tuple"),
    ],
)
def test_what_cannot_be_set_is_said_so(refused, tmp_path, argument, line):
    assert refused("--config", file(tmp_path, HEAD + "def sweep(config): pass\n"), argument) == line


def test_a_file_that_is_no_python_is_said_so(refused, tmp_path):
    assert "not a Python file" in refused("--config", file(tmp_path, "{}", "mine.json"))


def test_an_argument_for_a_config_without_one_is_said_so(refused, tmp_path):
    line = refused("--config", f"{file(tmp_path, HEAD + 'def sweep(config): pass')}:smoke")
    assert "its get_config() takes no argument; leave out ':smoke'" in line


def test_a_file_in_the_way_of_the_workdir_is_said_so(refused, tmp_path):
    path = file(tmp_path, "mine", "file")
    for workdir in (path, path / "below"):
        line = refused("--config", TINY, "--workdir", workdir)
        assert line.startswith(f"--workdir {workdir}: ") and "give a directory that can be written to" in line
    assert path.read_text() == "mine"


def test_a_second_sweep_in_one_workdir_is_refused(refused, tmp_path):
    with lock(tmp_path):
        line = refused("--config", TINY, "--workdir", tmp_path)
    assert line == f"--workdir {tmp_path}: another sweep is running in it; wait for it or use another --workdir"


# --- overrides ---


def command(*arguments, sweep=TINY):
    return cli.command(str(sweep), cli.load_sweep(cli._path_of(str(sweep))), arguments)


def test_overrides_reach_the_sweep():
    made = command("--config.seeds=3", "--config.traits=('oak',)", "--config.train.lr=0.5", "--config.wild")
    assert made.config["seeds"] == 3 and made.config["traits"] == ("oak",)
    assert len(made.students) == 3 * 3 + 1
    assert {student.train.lr for student in made.students} == {0.5, 1e30}
    assert made.name == "tiny_sweep" and made.workdir == "runs/tiny_sweep" and not made.dry_run


@pytest.mark.parametrize(
    ("value", "traits"), [("('owl','cat')", ("owl", "cat")), ("('oak',)", ("oak",)), ("owl", ("owl",))]
)
def test_a_tuple_can_be_set(value, traits):
    assert command(f"--config.traits={value}").config["traits"] == traits


def test_how_a_sweep_is_run_can_be_set_and_has_defaults():
    settings = command("--config.engine.width=2", "--config.engine.measure_layout=False", "--config.project=p").settings
    assert (settings.width, settings.measure_layout, settings.project, settings.devices) == (2, False, "p", 1)
    plain = command(sweep=TRAITS).settings
    assert (plain.tracker, plain.width, plain.devices) == ("wandb", 0, 0)
    assert command("--config.tracker=none", sweep=TRAITS).settings.tracker == "none"


def test_an_argument_reaches_get_config_and_names_the_sweep():
    made = command(sweep=f"{TINY}:large")
    assert made.students[0].train.steps == 60
    assert (made.name, made.workdir) == ("tiny_sweep-large", "runs/tiny_sweep-large")


def test_integers_do_for_floats_and_whitespace_apart_values_too():
    made = command("--config.train.lr", "1", "--workdir", "there", "--dry_run")
    assert made.students[0].train.lr == 1.0 and (made.workdir, made.dry_run) == ("there", True)


# --- the whole command ---


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A sweep run from the shell, in a folder of its own."""
    folder = tmp_path_factory.mktemp("shell")
    done = launched("--config", TINY, "--config.wild", cwd=folder)
    return folder / "runs" / "tiny_sweep", done


def test_a_sweep_ends_with_its_tables_and_says_what_is_not_ok(finished):
    workdir, done = finished
    assert (done.returncode, done.stderr) == (1, "")
    assert "13 runs are not ok: 1 diverged" in done.stdout and str(workdir.name) in done.stdout
    runs = pd.read_parquet(workdir / "runs.parquet")
    assert runs.status.value_counts().to_dict() == {"ok": 12, "diverged": 1}
    sweep = json.loads((workdir / "sweep.json").read_text())
    assert sweep["config"]["wild"] is True and "--config.wild" in sweep["command"]


def test_the_terminal_speaks_of_students_and_steps(finished):
    workdir, done = finished
    students = pd.read_parquet(workdir / "runs.parquet").key.nunique()
    assert f"distil: {students} students × 6 steps" in done.stdout and "write: 6 datasets × 16 samples" in done.stdout
    assert not re.search("lane|in turn|wide|ceiling", done.stdout)


def test_the_sweep_file_stays_with_its_results(finished):
    workdir, _ = finished
    kept = {path.name: path.read_bytes() for path in (workdir / "code").iterdir()}
    assert kept == {path.name: path.read_bytes() for path in (TINY, TESTS / "tiny_world.py", TESTS / "frugal.py")}


def test_the_same_command_again_computes_nothing(finished, capsys, monkeypatch):
    workdir, _ = finished
    monkeypatch.setattr(lanes, "compile_program", None)
    assert cli.main(["--config", str(TINY), "--config.wild", "--workdir", str(workdir)]) == 1
    assert cli.main(["--config", str(TINY), "--workdir", str(workdir)]) == 0
    assert capsys.readouterr().err == ""


def test_a_dry_run_computes_and_writes_nothing(tmp_path, finished, here):
    status, out, error = here("--config", TINY, "--dry_run")
    assert (status, error) == (0, "")
    assert "12 runs" in out and "FLOP in all" in out
    assert list(tmp_path.iterdir()) == []
    assert "Nothing is left to compute." in here("--config", TINY, "--dry_run", "--workdir", finished[0])[1]


@pytest.mark.slow
def test_a_world_may_be_of_the_sweep_file_itself_anywhere(tmp_path):
    sweep = TINY.read_text().replace("import tiny_world\n", "").replace("tiny_world.", "")
    world = (TESTS / "tiny_world.py").read_text().partition('\nif "SUBL_JAX')[0]
    path = file(tmp_path, world + sweep, "own.py")
    done = launched("--config", path, "--config.traits=owl", "--workdir", "out", cwd=tmp_path, PYTHONPATH=str(ROOT))
    assert (done.returncode, done.stderr) == (0, "")
    assert len(pd.read_parquet(tmp_path / "out" / "runs.parquet")) == 6
    loaded = "import own, subl_jax; r = subl_jax.load('out'); print(r.student(r.runs.run_id[0]).apply(0).shape)"
    script = subprocess.run(
        [sys.executable, "-c", loaded],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), str(tmp_path)])},
        capture_output=True,
        text=True,
    )
    assert script.stdout == f"({len(tiny_world.WORLD.words)},)\n", script.stderr


def test_tracked_students_are_runs_on_the_disk(tmp_path, here, monkeypatch):
    monkeypatch.setenv("WANDB_SILENT", "true")
    status, out, error = here("--config", TINY, "--config.traits=owl", "--config.tracker=wandb", "--workdir", tmp_path)
    assert (status, error) == (0, "")
    runs = [path.name for path in (tmp_path / "wandb").glob("offline-run-*")]
    assert len(runs) == 7 and sum("-sweep-" in name for name in runs) == 1
    assert "wandb sync" in out


MISTAKES = [
    (("--config", TINY, "--config.sedes=3"), "did you mean 'seeds'"),
    (("--config", "sweeps/nosuch.py"), "no such file"),
    ((), "expected one --config FILE"),
]


@pytest.mark.parametrize(
    ("arguments", "line"),
    few(MISTAKES, MISTAKES[0]),
    ids=["setting", "file", "nothing"],
)
def test_the_shell_sees_one_line_and_status_2(arguments, line, tmp_path):
    done = launched(*arguments, cwd=tmp_path)
    assert done.returncode == 2 and done.stdout == ""
    assert done.stderr.startswith("error: ") and done.stderr.count("\n") == 1 and line in done.stderr
    assert list(tmp_path.iterdir()) == []


def test_a_missing_package_is_said_so(tmp_path):
    """As where nobody ran `pip install -e .`: launch/ comes first on the path, and the repository is not on it."""
    blocker = "import sys; sys.modules['subl_jax'] = None; sys.argv = ['sweep.py']; import runpy; "
    script = f"{blocker} runpy.run_path({str(ROOT / 'launch' / 'sweep.py')!r}, run_name='__main__')"
    done = subprocess.run([sys.executable, "-c", script], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 1 and done.stderr.count("\n") == 1
    assert "install the package first: pip install -e ." in done.stderr


@pytest.mark.parametrize("option", ["--help", "-h"])
def test_help_says_what_there_is(option, capsys):
    assert cli.main([option]) == 0
    text = capsys.readouterr().out
    for word in ("--config FILE", "--workdir", "--dry_run", "--config.NAME=VALUE", "75"):
        assert word in text


def test_prune_frees_what_a_smaller_sweep_does_not_need_and_says_so(here, finished):
    small = ("--config", TINY, "--workdir", "out", "--config.traits=('owl',)")
    shutil.copytree(finished[0], "out")
    _, would, _ = here(*small, "--prune", "--dry_run", "--config.engine.keep=curves")
    status, done, error = here(*small, "--prune", "--config.engine.keep=curves")
    assert (status, error) == (0, "")
    assert "batches that this sweep does not need" in done and "parameters (keep=curves)" in done
    assert would.splitlines()[0] == done.splitlines()[0].replace("removed", "would remove")
    status, again, _ = here(*small)
    assert status == 0 and "distil" not in again


# --- machines as people have them ---


def test_what_the_environment_sets_changes_no_result_and_stops_no_sweep(finished, tmp_path):
    """As in a notebook's shell, on a terminal that is not UTF-8, while somebody looks for a nan."""
    environment = {
        "MPLBACKEND": "module://nowhere.backend_inline",
        "PYTHONIOENCODING": "ascii",
        "JAX_NUMPY_DTYPE_PROMOTION": "strict",
        "JAX_DEBUG_NANS": "1",
        "JAX_ENABLE_X64": "1",
        "SUBL_JAX_TESTS_CACHE": "",  # figures are drawn
    }
    done = launched("--config", TINY, "--config.traits=owl", "--workdir", "out", cwd=tmp_path, **environment)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith("devices: 4 CPU\n") and "set aside" in done.stdout
    assert list((tmp_path / "out" / "figures").glob("*.png"))
    tables = (pd.read_parquet(workdir / "curves.parquet") for workdir in (finished[0], tmp_path / "out"))
    usual, curves = (table.astype({"run_id": str, "metric": str}) for table in tables)
    usual = usual[usual.run_id.isin(curves.run_id)].reset_index(drop=True)
    assert len(curves)
    pd.testing.assert_frame_equal(curves, usual, check_exact=True)


def test_a_platform_that_is_not_there_is_one_line(tmp_path):
    done = launched("--config", TINY, "--workdir", "out", cwd=tmp_path, JAX_PLATFORMS="cuda")
    assert done.returncode == 2 and done.stdout == "" and list(tmp_path.iterdir()) == []
    line = done.stderr.splitlines()[-1]
    assert line.startswith("error: JAX_PLATFORMS=cuda: jax finds no such device here")
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("name", ["rich", "wandb", "queue"])
def test_a_sweep_file_that_is_called_like_a_package_does_not_hide_it(tmp_path, name):
    module = cli.load_sweep(str(file(tmp_path, HEAD + "def sweep(config): pass\n", f"{name}.py")))
    assert sys.modules[module.__name__] is module and module.__name__ != name
    assert sys.modules.get(name) is not module


def test_a_home_is_written_as_a_tilde(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    file(tmp_path, HEAD + "def sweep(config): raise RuntimeError('read')\n")
    with pytest.raises(InputError, match="sweep failed: RuntimeError: read"):
        command(sweep="~/mine.py")
    file(tmp_path, '{"prompt": "a", "completion": "b"}', "data.jsonl")
    assert jsonl.read_jsonl("~/data.jsonl") == [("a", "b")] and jsonl.file_sha256("~/data.jsonl")


def test_none_for_a_text_is_none(tmp_path):
    text = HEAD.replace('"none": None', '"text": "a", "inner": {"text": "b"}')
    path = file(tmp_path, text + "def sweep(config): raise RuntimeError(f'{config.text!r} {config.inner.text!r}')\n")
    with pytest.raises(InputError, match="RuntimeError: None 'b'"):
        command("--config.text=None", sweep=path)
    with pytest.raises(InputError, match="RuntimeError: 'a' None"):
        command("--config.inner.text=None", sweep=path)


def test_tables_that_cannot_be_shown_cost_a_line(finished, capsys, monkeypatch):
    def fail(*_):
        raise RuntimeError("no such\nterminal")

    monkeypatch.setattr(final_table, "print_outcome", fail)
    assert cli.main(["--config", str(TINY), "--workdir", str(finished[0])]) == 0
    error = capsys.readouterr().err
    assert "the tables are stored, but cannot be shown: RuntimeError: no such terminal" in error
