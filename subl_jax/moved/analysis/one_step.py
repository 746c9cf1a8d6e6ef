"""Moved to `subl_jax.results.one_step`."""

from subl_jax.moved import say
from subl_jax.results.one_step import *  # noqa: F403

say("analysis.one_step", "results.one_step")
