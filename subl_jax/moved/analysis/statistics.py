"""Moved to `subl_jax.results.comparisons`."""

from subl_jax.results.comparisons import *  # noqa: F403
from subl_jax.moved import say

say("analysis.statistics", "results.comparisons")
