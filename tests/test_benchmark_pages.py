"""The pages with measurements show what is stored of them."""

import pathlib

import pytest

ROOT = pathlib.Path(__file__).resolve().parent.parent


@pytest.fixture
def summarise(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "bench"))
    import summarise

    return summarise


def test_tables_are_those_of_the_stored_measurements(summarise):
    for page, names in summarise.PAGES.items():
        text = (ROOT / "docs" / page).read_text()
        assert summarise.filled(text, names, ROOT / "bench" / "results") == text, "run bench/summarise.py"


def test_every_benchmark_has_one_place(summarise):
    with pytest.raises(SystemExit, match="expected one <!-- begin digits -->"):
        summarise.filled("no place at all", ["digits"], ROOT / "bench" / "results")
