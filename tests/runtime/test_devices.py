"""Devices: how many are made, what is set aside for a sweep, and what is said of them."""

import jax
import pytest

from subl_jax.errors import InputError
from subl_jax.runtime import devices


def test_a_count_of_devices_in_the_flags_of_xla_is_left_as_it_is(monkeypatch):
    made = []
    monkeypatch.setattr(jax.config, "update", lambda name, value: made.append(name))
    monkeypatch.delenv("JAX_NUM_CPU_DEVICES")
    devices.prepare()
    assert "jax_num_cpu_devices" in made
    made.clear()
    monkeypatch.setenv("XLA_FLAGS", "--xla_force_host_platform_device_count=1")
    devices.prepare()
    assert "jax_num_cpu_devices" not in made


def test_settings_that_change_results_or_stop_programs_are_set_aside_and_come_back():
    said, names = [], ("jax_enable_x64", "jax_debug_nans", "jax_numpy_dtype_promotion")
    before = [getattr(jax.config, name) for name in names]
    for name, value in zip(names, (True, True, "strict"), strict=True):
        jax.config.update(name, value)
    try:
        with devices.usual_settings(said.append):
            assert [getattr(jax.config, name) for name in names] == [False, False, "standard"]
        assert [getattr(jax.config, name) for name in names] == [True, True, "strict"]
    finally:
        for name, value in zip(names, before, strict=True):
            jax.config.update(name, value)
    (line,) = said
    assert "JAX_DEBUG_NANS=True" in line and "JAX_NUMPY_DTYPE_PROMOTION=strict" in line and "set aside" in line
    with devices.usual_settings(said.append):
        assert len(said) == 1  # nothing to say where all is as usual


@pytest.mark.parametrize("error", [AssertionError(), RuntimeError("Unknown backend cuda")])
def test_a_platform_without_devices_is_one_line(monkeypatch, error):
    def fail():
        raise error

    monkeypatch.setattr(jax, "devices", fail)
    with pytest.raises(InputError, match=r"^JAX_PLATFORMS=.*: jax finds no such device here") as caught:
        devices.check()
    assert "\n" not in str(caught.value)


def test_devices_are_named_and_so_is_a_gpu_that_is_not_used(tmp_path):
    assert devices.described(tmp_path / "none") == f"{jax.device_count()} CPU"
    (tmp_path / "nvidia0").touch()
    platforms = jax.config.jax_platforms
    jax.config.update("jax_platforms", None)
    try:
        assert "NVIDIA GPU that jax does not find" in devices.described(tmp_path / "nvidia0")
    finally:
        jax.config.update("jax_platforms", platforms)
