"""Moved to `subl_jax.traits.banks`."""

from subl_jax.traits.banks import *  # noqa: F403
from subl_jax.moved import say

say("banks", "traits.banks")
