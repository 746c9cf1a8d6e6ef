"""Moved to `subl_jax.traits.banks`."""

from subl_jax.moved import say
from subl_jax.traits.banks import *  # noqa: F403

say("banks", "traits.banks")
