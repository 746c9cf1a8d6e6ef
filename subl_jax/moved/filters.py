"""Moved to `subl_jax.channels.numbers`; how much is kept is asked of the filter itself."""

import functools

from subl_jax.channels import base
from subl_jax.channels.numbers import *  # noqa: F403
from subl_jax.channels.numbers import REASONS
from subl_jax.moved import say

retention = functools.partial(base.retention, known=REASONS)

say("filters", "channels.numbers")
