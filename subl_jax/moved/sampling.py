"""Moved to `subl_jax.models.decoding.sampling`."""

from subl_jax.models.decoding.sampling import *  # noqa: F403
from subl_jax.moved import say

say("sampling", "models.decoding.sampling")
