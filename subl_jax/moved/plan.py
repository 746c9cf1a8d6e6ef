"""Moved to `subl_jax.engine.plan`."""

from subl_jax.engine.plan import *  # noqa: F403
from subl_jax.moved import say

say("plan", "engine.plan")
