"""How long a step takes, and so how many steps are dispatched at a time."""

import math
import time

from subl_jax.engine.lanes import Layout, Program
from subl_jax.engine.plan import Group

# Any machine does more than this; groups that are short even so are not worth timing.
FLOPS_A_SECOND_AT_LEAST = 2e10
# Seconds after which it is looked again how long a step takes.
_PACE_HOLDS = 60.0


class Pace:
    """How long a step of a program takes, in seconds: a guess, then what a stretch took that ran alone.

    Of stretches that wait for one another no time is taken: devices differ in when a call returns.
    """

    def __init__(self, guess: float) -> None:
        self.seconds = guess
        self._timed = -math.inf
        self._ended = False  # the stretch before ended a round, and was too long with its measurement

    @property
    def is_old(self) -> bool:
        """It is to be timed: the machine may be busier or idler by now."""
        return time.monotonic() - self._timed > _PACE_HOLDS

    def steps(self, seconds: float) -> int:
        """As many as take at most these seconds, or one."""
        return int(min(max(seconds / max(self.seconds, 1e-12), 1), 2**31 - 1))

    def took(self, seconds: float, steps: int, ends: bool, wanted: float) -> None:
        """What a stretch of at least one step took alone; with a measurement, if it ends a round."""
        self.seconds = seconds / steps
        # A measurement may be what made it long, and a first call's own time what made its steps look slow: the next
        # one then tells more.
        known = seconds <= wanted if ends else seconds >= wanted / 2 or self._ended
        if known:
            self._timed = time.monotonic()
        self._ended = ends and not known


class Paces:
    """The pace of every program, kept from one batch to the next."""

    def __init__(self) -> None:
        self._paces: dict[tuple[str, Layout], Pace] = {}

    def of(self, group: Group, program: Program) -> Pace:
        """Guessed, where the program has not run yet: large models take less on any machine."""
        flops = group.flops / max(group.work * len(group.nodes), 1)
        guess = flops * program.layout.lanes / FLOPS_A_SECOND_AT_LEAST
        return self._paces.setdefault((group.form, program.layout), Pace(guess))
