"""What the commands beside `sweep` share: how arguments are refused, and how a command ends."""

import argparse
import sys
from collections.abc import Callable
from typing import NoReturn

from subl_jax.errors import InputError, OutOfMemory, Preempted, StorageError
from subl_jax.tracking import plain_text


class Arguments(argparse.ArgumentParser):
    """A parser of `subl_jax COMMAND` whose refusals are InputErrors."""

    def __init__(self, command: str) -> None:
        super().__init__(prog=f"subl_jax {command}", add_help=False, allow_abbrev=False)

    def error(self, message: str) -> NoReturn:
        raise InputError(f"{message}; see python -m {self.prog} --help")


def ended(work: Callable[[], object]) -> int:
    """Does the work of a command and returns its exit status; what goes wrong is one line."""
    plain_text.allow()
    try:
        work()
        return 0
    except InputError as error:
        return said(f"error: {error}", 2)
    except (OutOfMemory, StorageError) as error:
        return said(f"error: {error}", 1)
    except (KeyboardInterrupt, Preempted):
        return said("interrupted: what is stored stays; run the same command again to go on", 75)


def said(line: str, status: int) -> int:
    """Writes a line to stderr, and gives the status."""
    print(line, file=sys.stderr)
    return status
