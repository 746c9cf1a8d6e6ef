"""Moved to `subl_jax.results.tables`."""

from subl_jax.moved import say
from subl_jax.results.tables import *  # noqa: F403

say("tables", "results.tables")
