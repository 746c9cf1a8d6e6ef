"""The ways a sweep can end other than well, each with the line a user reads."""


class InputError(ValueError):
    """A user's mistake: one line that says what was wrong, where, and what would be right. Exit status 2."""


class SampleError(InputError):
    """A sample that is not of a world. `index` counts from 0; who knows the file says its line instead."""

    def __init__(self, index: int, why: str) -> None:
        super().__init__(f"sample {index + 1}: {why}")
        self.index, self.why = index, why


class Preempted(Exception):
    """The machine is going away (SIGTERM or ctrl-C); what finished is stored. Exit status 75."""


class PeerLost(Preempted):
    """Another process of this program is gone, and this one cannot go on alone. Exit status 75."""


class StorageError(OSError):
    """A file could not be written or read back (full disk, no permission). Exit status 1; nothing stored is lost."""


class FleetError(Exception):
    """Other machines cannot compute what they were given. Exit status 1; nothing stored is lost."""


class OutOfMemory(Exception):
    """A program does not fit on its devices. Exit status 1 where not even one lane does; nothing stored is lost.

    final: fewer lanes would need as much.
    """

    def __init__(self, line: str, final: bool = False) -> None:
        super().__init__(line)
        self.final = final
