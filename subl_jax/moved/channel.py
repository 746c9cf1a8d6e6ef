"""Moved to `subl_jax.stages.collecting`."""

from subl_jax.stages.collecting import *  # noqa: F403
from subl_jax.moved import say

say("channel", "stages.collecting")
