"""What the documentation says can be typed: its examples are whole sweep files, and are run, small."""

import pathlib
import re

import pytest

from subl_jax import specs
from subl_jax.app import running
from subl_jax.app.cli import load_sweep

DOCS = pathlib.Path(__file__).parents[1] / "docs"
PAGES = [*sorted(DOCS.glob("seams/*.md")), DOCS.parent / "README.md"]
SMALL = {"seeds": 1, "pretrain": 150, "steps": 4, "size": 8, "null": 2, "traits": ("owl",)}


def examples(page):
    """The Python files of a page: name → text. Each begins with a docstring that names it."""
    found = re.findall(r"^```python\n(\"\"\"(\w+)\.py: .*?)^```", page.read_text(), re.M | re.S)
    return {name: text for text, name in found}


EXAMPLES = [(page.stem, name, text) for page in PAGES for name, text in examples(page).items()]


@pytest.fixture(scope="session")
def workdir(tmp_path_factory):
    """One for all, so that the bases and teachers that the examples share are computed once."""
    return tmp_path_factory.mktemp("docs") / "runs"


def test_every_seam_has_a_page_with_an_example():
    seams = {page.stem for page in PAGES if page.parent.name == "seams" and page.stem != "README"}
    assert {page for page, _, _ in EXAMPLES} == {*seams, "README"}


@pytest.mark.parametrize(("page", "name", "text"), EXAMPLES, ids=[name for _, name, _ in EXAMPLES])
def test_an_example_runs(page, name, text, tmp_path, workdir, monkeypatch):
    file = tmp_path / f"{name}.py"
    file.write_text(text)
    monkeypatch.syspath_prepend(str(tmp_path))
    module = load_sweep(str(file))
    config = module.get_config()
    config.update({field: value for field, value in SMALL.items() if field in config})
    if "derangement" in text:
        config.seeds = 2  # of one base there is no other
    rows = specs.checked(module.sweep(config))
    outcome = running.run(rows, workdir, config=config.to_dict())
    assert outcome.all_ok, outcome.lines
    # A strength is an axis: it makes rows, and no program.
    groups = [group for group in outcome.results.sweep["groups"] if group["stage"] in ("distil", "transform", "audit")]
    assert len(rows) > 1 and groups and max(group["lanes"] for group in groups) > 1
