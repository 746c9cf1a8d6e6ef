"""How many steps are dispatched at a time."""

import types

from subl_jax.engine import pace
from subl_jax.engine.pace import Pace


def test_training_runs_for_as_long_as_was_asked_before_the_host_looks_up(monkeypatch):
    now = [100.0]
    monkeypatch.setattr(pace, "time", types.SimpleNamespace(monotonic=lambda: now[0]))
    pace_of = Pace(guess=20.0)
    assert pace_of.steps(4.0) == 1 and pace_of.is_old  # at least a step
    pace_of.took(2.0, 4, ends=False, wanted=4.0)
    assert pace_of.steps(4.0) == 8 and not pace_of.is_old
    now[0] += 61.0
    assert pace_of.is_old
    pace_of.took(25.0, 8, ends=True, wanted=4.0)  # with a measurement, and too long: what the steps take is not known
    assert pace_of.steps(4.0) == 1 and pace_of.is_old
    pace_of.took(0.5, 1, ends=False, wanted=4.0)
    assert pace_of.steps(4.0) == 8 and not pace_of.is_old
    now[0] += 61.0
    pace_of.took(1.0, 1, ends=False, wanted=4.0)  # much of it may be what a first call costs
    assert pace_of.steps(4.0) == 4 and pace_of.is_old
    pace_of.took(2.0, 4, ends=False, wanted=4.0)
    assert pace_of.steps(4.0) == 8 and not pace_of.is_old
    now[0] += 61.0
    pace_of.took(3.0, 8, ends=True, wanted=4.0)
    assert pace_of.steps(4.0) == 10 and not pace_of.is_old
    assert Pace(guess=0.0).steps(4.0) == 2**31 - 1
