"""Moved to `subl_jax.results.one_step`."""

from subl_jax.results.one_step import *  # noqa: F403
from subl_jax.moved import say

say("analysis.one_step", "results.one_step")
