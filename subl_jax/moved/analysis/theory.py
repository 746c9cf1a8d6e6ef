"""Moved to `subl_jax.probes.theorem`."""

from subl_jax.moved import say
from subl_jax.probes.theorem import *  # noqa: F403

say("analysis.theory", "probes.theorem")
