"""Moved to `subl_jax.engine.settings`."""

from subl_jax.engine.settings import *  # noqa: F403
from subl_jax.moved import say

say("settings", "engine.settings")
