"""What control groups of a container allow, in both versions of their files."""

import pytest

from subl_jax.runtime import container, devices, memory

GIB = 2**30


def machine(folder, groups, **files):
    """A tree of control groups under `folder`, and the process's place in it."""
    for name, text in files.items():
        path = folder / name.replace("__", "/").replace("_DOT_", ".")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    (folder / "of_process").write_text(groups)
    return folder, folder / "of_process"


def test_version_2_has_the_tightest_quota_and_limit_of_all_groups_around(tmp_path):
    files = {
        "outer__cpu_DOT_max": "250000 100000\n",
        "outer__inner__cpu_DOT_max": "max 100000\n",
        "outer__memory_DOT_max": f"{4 * GIB}\n",
        "outer__memory_DOT_current": f"{3 * GIB}\n",
        "outer__memory_DOT_stat": f"anon 1\ninactive_file {GIB}\n",
        "outer__inner__memory_DOT_max": "max\n",
        "outer__inner__memory_DOT_current": "1\n",
    }
    there = machine(tmp_path, "0::/outer/inner\n", **files)
    assert container.cpus(*there) == 2.5
    assert container.memory_left(*there) == 2 * GIB  # cached files are let go


def test_version_1_has_a_tree_for_each_controller_and_the_container_sees_its_own_as_the_root(tmp_path):
    files = {
        "cpu__cpu_DOT_cfs_quota_us": "200000\n",
        "cpu__cpu_DOT_cfs_period_us": "100000\n",
        "memory__memory_DOT_limit_in_bytes": f"{2 * GIB}\n",
        "memory__memory_DOT_usage_in_bytes": f"{GIB}\n",
    }
    there = machine(tmp_path, "5:cpu,cpuacct:/docker/1\n4:memory:/docker/1\n", **files)
    assert container.cpus(*there) == 2.0
    assert container.memory_left(*there) == GIB


@pytest.mark.parametrize("files", [{}, {"cpu__cpu_DOT_cfs_quota_us": "-1", "cpu__cpu_DOT_cfs_period_us": "100000"}])
def test_without_a_limit_there_is_none(tmp_path, files):
    there = machine(tmp_path, "5:cpu:/\n0::/\n", **files)
    assert container.cpus(*there) is None and container.memory_left(*there) is None


def test_a_quota_counts_as_cores_and_a_limit_as_memory(monkeypatch):
    monkeypatch.setattr(container, "cpus", lambda: 0.5)
    monkeypatch.setattr(container, "memory_left", lambda: 4096)
    assert devices.cores() == 1
    assert memory.free(2) == 2048
