"""jax's profiler trace of some steps, where one was asked for."""

import pathlib
from collections.abc import Callable, Sequence
from typing import TypeVar

import jax

from subl_jax.engine.observers import Display
from subl_jax.engine.plan import Group

T = TypeVar("T")


class Profiler:
    """Traces one call of the group that has the most to compute.

    folder: where the trace goes; None: nothing is traced.
    """

    def __init__(self, folder: pathlib.Path | None, display: Display) -> None:
        self._folder = folder
        self._display = display
        self._form = ""  # of the group to trace

    def choose(self, groups: Sequence[Group]) -> None:
        """The group is one of these."""
        self._form = max(groups, key=lambda group: group.flops).form if groups else ""

    def traced(self, group: Group, steps: int, may: bool, compute: Callable[[], T]) -> T:
        """`compute()`, traced if it is the first that may be of the chosen group."""
        if self._folder is None or group.form != self._form or not may:
            return compute()
        folder, self._folder = self._folder, None
        with jax.profiler.trace(str(folder), create_perfetto_trace=True):
            done = jax.block_until_ready(compute())
        what = f"{steps} step{'s'[: steps != 1]}" if steps else "a measurement"
        self._display.say(f"{group.stage.name}: {what} traced in {folder} (for ui.perfetto.dev or TensorBoard)")
        return done
