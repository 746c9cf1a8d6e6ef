"""Moved to `subl_jax.worlds.chat`."""

from subl_jax.moved import say
from subl_jax.worlds.chat import *  # noqa: F403

say("worlds.pretrained", "worlds.chat")
