"""Moved to `subl_jax.results.figures`."""

from subl_jax.results.figures import *  # noqa: F403
from subl_jax.moved import say

say("figures", "results.figures")
