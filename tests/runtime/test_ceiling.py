"""The measured ceiling of a machine, and that the best measurement is the one that is kept."""

import json

import jax
import pytest

from subl_jax.runtime import ceiling


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("SUBL_JAX_CACHE", str(tmp_path))
    ceiling._of_process.cache_clear()
    yield tmp_path / "ceilings.json"
    ceiling._of_process.cache_clear()


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_ceiling_is_measured_and_remembered(dtype, cache):
    found = ceiling.flops_a_second(dtype)
    assert 1e8 < found < 1e17
    assert list(json.loads(cache.read_text()).values()) == [found] == [ceiling.flops_a_second(dtype)]


def test_a_slower_measurement_does_not_lower_it(monkeypatch):
    measured = iter([5e9, 3e9, 8e9])
    monkeypatch.setattr(ceiling, "_measured", lambda dtype: next(measured))
    found = []
    for _ in range(3):
        found.append(ceiling.flops_a_second("float32"))
        ceiling._of_process.cache_clear()
    assert found == [5e9, 5e9, 8e9]


@pytest.mark.parametrize("others", [[], [5e9]])
def test_without_memory_for_it_there_is_none(monkeypatch, others):
    """Of any process; and it is asked for again."""

    class Peers:
        def gather(self, own):
            return [own, *others]

    def measured(dtype):
        raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory allocating 1 bytes.")

    monkeypatch.setattr(ceiling.cluster, "peers", Peers)
    with monkeypatch.context() as full:
        full.setattr(ceiling, "_measured", measured)
        assert ceiling.flops_a_second("float32") == 0
    monkeypatch.setattr(ceiling, "_measured", lambda dtype: 3e9)
    assert ceiling.flops_a_second("float32") == 3e9 + sum(others)
