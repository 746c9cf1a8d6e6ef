"""The pages with measurements show what is stored of them."""

import pathlib
import shutil
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).resolve().parent.parent
PAGES = ("benchmarks.md", "models.md")


def summarised(folder: pathlib.Path) -> subprocess.CompletedProcess:
    """A process of its own, as benchmarks have names that sweeps have too."""
    command = [sys.executable, str(ROOT / "bench" / "summarise.py"), "--docs", str(folder)]
    return subprocess.run(command, capture_output=True, text=True)


@pytest.fixture
def docs(tmp_path):
    for page in PAGES:
        shutil.copy(ROOT / "docs" / page, tmp_path)
    return tmp_path


def test_tables_are_those_of_the_stored_measurements(docs):
    assert summarised(docs).returncode == 0
    for page in PAGES:
        assert (docs / page).read_text() == (ROOT / "docs" / page).read_text(), "run bench/summarise.py"


def test_a_page_without_a_place_is_told(docs):
    (docs / "models.md").write_text("no place at all")
    assert "expected one <!-- begin sizing -->" in summarised(docs).stderr
