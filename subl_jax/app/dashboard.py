"""Saves views of a W&B project, and a W&B report of a sweep.

  --project PROJECT   the project, or ENTITY/PROJECT; without it WANDB_PROJECT,
                      or else subl_jax
  --workdir DIR       a finished sweep, of which a report is saved too

Views: transfer by arm with bands over seeds, comparison, retention, throughput.
Each call saves new ones.

Needs a W&B login, and pip install 'subl_jax[dashboard]'.

Exit status: 0 all is saved; 1 W&B cannot be reached or refuses; 2 bad input,
nothing was saved.
"""

import os
from collections.abc import Sequence
from typing import NamedTuple

from absl import flags

from subl_jax.app.command import ended
from subl_jax.errors import InputError, StorageError


class Command(NamedTuple):
    project: str
    workdir: str | None


def main(argv: Sequence[str]) -> int:
    """Runs the command (without the program's name in front) and returns its exit status."""
    if {"-h", "--help", "--helpfull"} & set(argv):
        print(__doc__)
        return 0
    return ended(lambda: _save(parsed(argv)))


def _save(command: Command) -> None:
    try:
        addresses = _saved(command)
    except InputError:
        raise
    except Exception as error:  # W&B's client raises errors of many kinds, those of the network's libraries among them
        reason = next(iter(str(error).splitlines()), "") or type(error).__name__
        raise StorageError(f"W&B: {reason}") from error
    for name, address in addresses.items():
        print(f"{name}: {address}")


def parsed(argv: Sequence[str]) -> Command:
    """The arguments.

    Raises:
      InputError: they are not understood.
    """
    values = flags.FlagValues()
    flags.DEFINE_string("project", "", "PROJECT or ENTITY/PROJECT.", flag_values=values)
    flags.DEFINE_string("workdir", None, "A finished sweep.", flag_values=values)
    try:
        left = values(["dashboard", *argv])[1:]
    except flags.Error as error:
        raise InputError(" ".join(str(error).split())) from None
    if left:
        raise InputError(f"{left[0]!r}: not understood; options begin with --, as in --project=subl_jax")
    return Command(values.project, values.workdir)


def _saved(command: Command) -> dict[str, str]:
    """Name → address of what was saved."""
    # Imported late: mistakes are told before W&B's client starts.
    from subl_jax.results.load import load
    from subl_jax.tracking import wandb_place

    place = wandb_place.place(command.project, os.environ, "--project")
    results = load(command.workdir) if command.workdir else None
    try:
        from subl_jax.tracking import wandb_views
    except ImportError as error:
        raise InputError(f"{error}; pip install 'subl_jax[dashboard]'") from None
    return wandb_views.save(place, results)
