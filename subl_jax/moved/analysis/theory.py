"""Moved to `subl_jax.probes.theory`."""

from subl_jax.moved import say
from subl_jax.probes.theory import *  # noqa: F403

say("analysis.theory", "probes.theory")
