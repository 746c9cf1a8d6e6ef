"""Terminals that are not UTF-8."""

import io
import sys

import pytest

from subl_jax.tracking import plain_text


@pytest.mark.parametrize(
    ("encoding", "line"), [("ascii", "2 x 3 - 1..., ?"), ("latin-1", "2 × 3 - 1..., ?"), ("utf-8", "2 × 3 − 1…, 猫")]
)
def test_what_a_terminal_cannot_show_is_written_with_what_it_has(monkeypatch, encoding, line):
    stream = io.TextIOWrapper(io.BytesIO(), encoding=encoding)
    monkeypatch.setattr(sys, "stdout", stream)
    plain_text.allow()
    print("2 × 3 − 1…, 猫", end="", flush=True)
    assert stream.buffer.getvalue().decode(encoding) == line
