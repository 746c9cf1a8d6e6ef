"""Moved to `subl_jax.traits.answers`."""

from subl_jax.moved import say
from subl_jax.traits.answers import *  # noqa: F403

say("answers", "traits.answers")
