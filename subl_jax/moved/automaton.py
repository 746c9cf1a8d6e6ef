"""Moved to `subl_jax.channels.automaton`, and the separators to `subl_jax.channels.numbers`."""

from subl_jax.channels.automaton import *  # noqa: F403
from subl_jax.channels.numbers import SEPARATORS  # noqa: F401
from subl_jax.moved import say

say("automaton", "channels.automaton")
