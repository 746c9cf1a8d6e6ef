"""The system's count of processes that it killed for their memory."""

import pytest

from subl_jax.runtime.kills import Kills


def machine(folder, boot, vmstat):
    path = folder / "sys" / "kernel" / "random" / "boot_id"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"{boot}\n")
    (folder / "vmstat").write_text(vmstat)
    return Kills.so_far(folder)


@pytest.mark.parametrize(
    ("boot", "vmstat", "expected"),
    [
        ("a", "nr_free_pages 5\noom_kill 4\n", True),
        ("a", "nr_free_pages 9\noom_kill 3\n", False),
        ("b", "oom_kill 4\n", None),  # another machine, or this one started anew
        ("a", "nr_free_pages 5\n", None),  # an old kernel
    ],
)
def test_kills_since_a_moment(tmp_path, boot, vmstat, expected):
    before = machine(tmp_path, "a", "nr_free_pages 5\noom_kill 3\n")
    assert Kills(**before.to_json()) == before
    assert machine(tmp_path, boot, vmstat).since(before) is expected


def test_a_system_without_such_files_does_not_say(tmp_path):
    found = Kills.so_far(tmp_path / "nowhere")
    assert found.count is None and found.since(found) is None
