"""Moved to `subl_jax.results.tables`."""

from subl_jax.results.tables import *  # noqa: F403
from subl_jax.moved import say

say("tables", "results.tables")
