"""Moved to `subl_jax.pretrained.chat`."""

from subl_jax.moved import say
from subl_jax.pretrained.chat import *  # noqa: F403

say("chat", "pretrained.chat")
