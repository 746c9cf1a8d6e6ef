"""Moved to `subl_jax.pretrained.chat`."""

from subl_jax.pretrained.chat import *  # noqa: F403
from subl_jax.moved import say

say("chat", "pretrained.chat")
