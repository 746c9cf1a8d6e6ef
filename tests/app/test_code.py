"""The sweep file and its imports, as a workdir keeps them."""

import importlib
import sys

import pytest
from etils import epath

from subl_jax.app import cli
from subl_jax.app.code import code_of, write_code

SWEEP = "import worlds_of_mine.small\n\n\ndef get_config():\n    pass\n\n\ndef sweep(config):\n    import made_late\n"


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A sweep file, a package and modules beside it, of which it imports some; and a package installed below."""
    files = {
        "mine.py": SWEEP,
        "made_late.py": "import elsewhere_in_it",
        "worlds_of_mine/__init__.py": "",
        "worlds_of_mine/small.py": "from worlds_of_mine import parts",
        "worlds_of_mine/parts.py": "",
        "worlds_of_mine/unused.py": "",
        "unused.py": "",
        ".venv/elsewhere_in_it.py": "",
    }
    for name, text in files.items():
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    monkeypatch.setattr(sys, "path", [str(tmp_path), str(tmp_path / ".venv"), *sys.path])
    monkeypatch.setattr(sys, "modules", dict(sys.modules))
    importlib.invalidate_caches()
    return tmp_path


def test_what_a_sweep_file_imports_from_beside_it_is_kept(folder, monkeypatch):
    monkeypatch.chdir(folder)
    module = cli.load_sweep("mine.py")
    module.sweep(module.get_config())
    code = code_of(folder / "mine.py")
    assert code.keys() == {
        *("mine.py", "made_late.py"),
        *(f"worlds_of_mine/{name}.py" for name in ("__init__", "small", "parts")),
    }
    assert code["mine.py"].decode() == SWEEP
    workdir = epath.Path(folder / "runs")
    for kept in (code, {"mine.py": b"another"}):  # of two sweeps in one workdir, that of the last
        write_code(workdir, kept)
        files = [path for path in (folder / "runs" / "code").rglob("*") if path.is_file()]
        assert {path.relative_to(folder / "runs" / "code").as_posix(): path.read_bytes() for path in files} == kept
