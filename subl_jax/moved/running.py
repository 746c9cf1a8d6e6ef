"""Moved to `subl_jax.app.running`."""

from subl_jax.app.running import *  # noqa: F403
from subl_jax.moved import say

say("running", "app.running")
