"""Moved to `subl_jax.results.report`."""

from subl_jax.moved import say
from subl_jax.results.headline import headline  # noqa: F401
from subl_jax.results.report import *  # noqa: F403

say("report", "results.report")
