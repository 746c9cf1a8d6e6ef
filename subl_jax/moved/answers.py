"""Moved to `subl_jax.traits.answers`."""

from subl_jax.traits.answers import *  # noqa: F403
from subl_jax.moved import say

say("answers", "traits.answers")
