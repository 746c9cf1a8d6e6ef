"""Moved to `subl_jax.results.figures`."""

from subl_jax.moved import say
from subl_jax.results.figures import *  # noqa: F403

say("figures", "results.figures")
