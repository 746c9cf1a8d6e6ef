"""Moved to `subl_jax.app.cli`."""

from subl_jax.app.cli import *  # noqa: F403
from subl_jax.moved import say

say("cli", "app.cli")
