"""Prints the tables of a finished sweep again.

  show WORKDIR    where the sweep's results are, any path, also gs://…

Exit status: 0; 2 where no finished sweep is there. Nothing is computed.
"""

from collections.abc import Sequence

from subl_jax.app.command import ended
from subl_jax.errors import InputError


def main(argv: Sequence[str]) -> int:
    """Runs one command line (without the program's name in front) and returns its exit status."""
    return ended(lambda: _show(argv))


def _show(argv: Sequence[str]) -> None:
    from rich.console import Console

    from subl_jax.app.running import finished_files, trouble
    from subl_jax.results.comparisons import Summarised
    from subl_jax.results.load import load
    from subl_jax.tracking.final_table import print_outcome

    if len(argv) != 1 or argv[0].startswith("-"):
        given = " ".join(argv) or "nothing"
        raise InputError(f"show: expected one WORKDIR, as in show runs/traits; got {given}")
    results = load(argv[0])
    found = Summarised(results.summary, results.comparisons)
    print_outcome(Console(), found, finished_files(results.workdir), trouble(results))
