"""Moved to `subl_jax.traits.banks`, and what is about numbers to `subl_jax.channels.numbers`."""

from subl_jax.channels.numbers import SHOWN, SHOWN_VALUES, number_prompts, with_numbers  # noqa: F401
from subl_jax.moved import say
from subl_jax.traits.banks import *  # noqa: F403

say("banks", "traits.banks")
