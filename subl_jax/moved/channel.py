"""Moved to `subl_jax.channels.imported` and `subl_jax.stages.collecting`."""

from subl_jax.channels.imported import *  # noqa: F403
from subl_jax.moved import say
from subl_jax.stages.collecting import *  # noqa: F403

say("channel", "channels.imported")
