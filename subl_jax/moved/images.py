"""Moved to `subl_jax.worlds.images`."""

from subl_jax.worlds.images import *  # noqa: F403
from subl_jax.moved import say

say("images", "worlds.images")
