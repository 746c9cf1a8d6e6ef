"""What a slice is, from text. That its machines compute together is tested on a cluster, in test_fleet.py."""

import pytest

from subl_jax.errors import InputError
from subl_jax.fleet.slices import Slice

pytest.importorskip("ray")


def test_slices_are_read_from_text():
    assert Slice.parsed("2", {"GPU": 8.0}) == Slice(2, {"GPU": 8.0})
    assert Slice.parsed("v6e:4x4", {}) == Slice(4, {"CPU": 1, "TPU": 4}, ("v6e", "4x4"))


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("0", "expected a number of machines, or GENERATION:TOPOLOGY as in v6e:4x4"),
        ("v6e", "expected a number of machines, or GENERATION:TOPOLOGY as in v6e:4x4"),
        ("v6e:4by4", "Ray knows no such slice"),
        ("v99:4x4", "Ray knows no such slice"),
    ],
)
def test_slices_that_are_none_are_one_line(text, line):
    with pytest.raises(InputError, match=f"^--ray_slice={text}: {line}") as raised:
        Slice.parsed(text, {})
    assert "\n" not in str(raised.value)
