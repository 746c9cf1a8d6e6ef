"""Moved to `subl_jax.training.optim`."""

from subl_jax.training.optim import *  # noqa: F403
from subl_jax.moved import say

say("optim", "training.optim")
