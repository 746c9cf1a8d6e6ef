"""Moved to `subl_jax.probes.theory`."""

from subl_jax.probes.theory import *  # noqa: F403
from subl_jax.moved import say

say("analysis.theory", "probes.theory")
