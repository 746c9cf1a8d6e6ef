"""Moved to `subl_jax.results.specificity`."""

from subl_jax.moved import say
from subl_jax.results.specificity import *  # noqa: F403

say("analysis.specificity", "results.specificity")
