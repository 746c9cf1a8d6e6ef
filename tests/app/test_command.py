"""How commands end, whatever the terminal: a status, and one line where something went wrong."""

import io
import sys

import pytest

from subl_jax.app.command import Arguments, ended
from subl_jax.errors import InputError, OutOfMemory, Preempted, StorageError


def test_a_terminal_that_is_not_utf_8_gets_plain_characters(monkeypatch):
    stream = io.TextIOWrapper(io.BytesIO(), encoding="ascii")
    monkeypatch.setattr(sys, "stdout", stream)
    assert ended(lambda: print("2 × 2 – and 3 more …")) == 0
    stream.flush()
    assert stream.buffer.getvalue() == b"2 x 2 - and 3 more ...\n"


@pytest.mark.parametrize(
    ("error", "status", "line"),
    [
        (InputError("no such thing"), 2, "error: no such thing"),
        (StorageError("full"), 1, "error: full"),
        (OutOfMemory("too large"), 1, "error: too large"),
        (Preempted(), 75, "interrupted: "),
        (KeyboardInterrupt(), 75, "interrupted: "),
    ],
)
def test_a_fault_is_a_line_and_a_status(error, status, line, capsys):
    def work():
        raise error

    assert ended(work) == status
    said = capsys.readouterr()
    assert said.out == "" and said.err.startswith(line) and said.err.count("\n") == 1


def test_arguments_that_are_not_understood_name_the_commands_help():
    with pytest.raises(InputError, match="unrecognized arguments: --x; see python -m subl_jax export --help"):
        Arguments("export").parse_args(["--x"])
