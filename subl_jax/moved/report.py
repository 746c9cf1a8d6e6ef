"""Moved to `subl_jax.results.report`."""

from subl_jax.results.report import *  # noqa: F403
from subl_jax.moved import say

say("report", "results.report")
