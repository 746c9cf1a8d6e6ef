"""Who watches a sweep, as the engine sees them: a tracker gets the students' curves, a display shows how far it is.

The engine is handed both and imports neither; `tracking` has those that people use. Here are those that do nothing.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import numpy as np
import pandas as pd


@dataclasses.dataclass(frozen=True)
class RunInfo:
    """One student, or the sweep itself, as a run.

    `sweep` becomes the W&B group, `arm` its job type, `config` its whole lineage (nested). `step` is the name of the
    axis. A run that `appends` goes on behind the rows of earlier commands; others send theirs again.
    """

    run_id: str
    name: str
    sweep: str
    arm: str
    world: str
    trait: str | None
    config: dict[str, Any]
    step: str = "student/step"
    appends: bool = False


class Tracker(Protocol):
    """Where curves are shown beside the files of the results contract. No method blocks or raises."""

    def start(self, run: RunInfo) -> None:
        """Opens a run; many may be open at once."""

    def log(self, run_id: str, steps: Sequence[int], metrics: Mapping[str, np.ndarray]) -> None:
        """Adds rows to a curve. Each metric: (len(steps),) float on the host; a NaN is left out of its row."""

    def show(self, run_id: str, tables: Mapping[str, pd.DataFrame], images: Mapping[str, bytes]) -> None:
        """Adds tables, and images as PNG, under their names. A column `run_id` of a table becomes links, too."""

    def finish(self, run_id: str, summary: Mapping[str, float | str], exit_code: int = 0) -> None:
        """Closes a run with its final numbers; exit code 0 means that the student is ok."""

    def delivered(self) -> frozenset[str]:
        """The run ids that were finished, by this process or an earlier one on the same workdir."""

    def close(self) -> list[str]:
        """Waits a limited time for what is still queued. Returns the lines to show at the end of the sweep."""


class NoTracker(Tracker):
    """Tracks nothing."""

    def start(self, run: RunInfo) -> None:
        pass

    def log(self, run_id: str, steps: Sequence[int], metrics: Mapping[str, np.ndarray]) -> None:
        pass

    def show(self, run_id: str, tables: Mapping[str, pd.DataFrame], images: Mapping[str, bytes]) -> None:
        pass

    def finish(self, run_id: str, summary: Mapping[str, float | str], exit_code: int = 0) -> None:
        pass

    def delivered(self) -> frozenset[str]:
        return frozenset()

    def close(self) -> list[str]:
        return []


@dataclasses.dataclass(frozen=True)
class GroupInfo:
    """A group as people see it: `count` students (`thing`, a singular noun) of a stage.

    work: all there is to do, over all of them, in `unit`. `layout`: how they are spread over devices, in words.
    """

    stage: str
    count: int
    thing: str
    work: int
    unit: str = "steps"
    layout: str = ""


class Display(Protocol):
    """Shows which group runs, and how far it is. `say` and `warn` may be called from any thread."""

    def plan(self, n_groups: int) -> None:
        """From here on, groups are shown as 1/n, 2/n, …"""

    def begin(self, group: GroupInfo) -> None:
        """Opens a group."""

    def compiling(self) -> None:
        """The group compiles from here to its next `advance`."""

    def advance(self, work: int, restored: bool = False) -> None:
        """Counts work that is done; `restored`: by an earlier run."""

    def end(self, summary: str = "", details: str = "") -> None:
        """Closes the group with one line. `details`: for those who ask for them."""

    def say(self, text: str) -> None:
        """One line."""

    def warn(self, text: str) -> None:
        """One line that stands out."""


class NoDisplay(Display):
    """Shows nothing, and keeps the warnings until somebody takes them."""

    def __init__(self) -> None:
        self._warnings: list[str] = []

    def plan(self, n_groups: int) -> None:
        pass

    def begin(self, group: GroupInfo) -> None:
        pass

    def compiling(self) -> None:
        pass

    def advance(self, work: int, restored: bool = False) -> None:
        pass

    def end(self, summary: str = "", details: str = "") -> None:
        pass

    def say(self, text: str) -> None:
        pass

    def warn(self, text: str) -> None:
        self._warnings.append(text)

    def warnings(self) -> list[str]:
        """Those since the last time."""
        taken, self._warnings = self._warnings, []
        return taken
