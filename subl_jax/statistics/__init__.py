"""Intervals and tests over arrays: they know nothing of sweeps, so that objectives and audits may use them too."""
