"""Moved to `subl_jax.results.comparisons`."""

from subl_jax.moved import say
from subl_jax.results.comparisons import *  # noqa: F403

say("analysis.statistics", "results.comparisons")
