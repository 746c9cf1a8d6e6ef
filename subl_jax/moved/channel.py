"""Moved to `subl_jax.stages.collecting`."""

from subl_jax.moved import say
from subl_jax.stages.collecting import *  # noqa: F403

say("channel", "stages.collecting")
