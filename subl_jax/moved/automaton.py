"""Moved to `subl_jax.channels.automaton`."""

from subl_jax.channels.automaton import *  # noqa: F403
from subl_jax.moved import say

say("automaton", "channels.automaton")
