"""Moved to `subl_jax.channels.numbers`."""

from subl_jax.channels.numbers import *  # noqa: F403
from subl_jax.moved import say

say("filters", "channels.numbers")
