"""Moved to `subl_jax.results.specificity`."""

from subl_jax.results.specificity import *  # noqa: F403
from subl_jax.moved import say

say("analysis.specificity", "results.specificity")
