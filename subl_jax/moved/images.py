"""Moved to `subl_jax.worlds.images`."""

from subl_jax.moved import say
from subl_jax.worlds.images import *  # noqa: F403

say("images", "worlds.images")
