"""Whether the system has killed a process for its memory: exit status 137, and no error that anybody could act on."""

import dataclasses
import pathlib
from typing import Any, Self

_PROC = pathlib.Path("/proc")


@dataclasses.dataclass(frozen=True)
class Kills:
    """How many processes this machine has killed for their memory since its start; None where it does not say.

    Linux counts them for the whole machine, those of containers too, and containers may read it.
    """

    machine: str
    count: int | None

    @classmethod
    def so_far(cls, proc: pathlib.Path = _PROC) -> Self:
        try:
            machine = (proc / "sys/kernel/random/boot_id").read_text(encoding="utf-8").strip()
            words = (proc / "vmstat").read_text(encoding="utf-8").split()
        except OSError:
            return cls("", None)
        found = dict(zip(words[::2], words[1::2], strict=False)).get("oom_kill", "")
        return cls(machine, int(found) if found.isdigit() else None)

    def since(self, before: "Kills") -> bool | None:
        """Whether there was one after `before`; None where that cannot be known, as after a move to another machine."""
        if self.machine != before.machine or None in (self.count, before.count):
            return None
        return self.count > before.count

    def to_json(self) -> dict[str, Any]:
        return dataclasses.asdict(self)
