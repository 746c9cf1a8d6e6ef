"""Moved to `subl_jax.training.optim`."""

from subl_jax.moved import say
from subl_jax.training.optim import *  # noqa: F403

say("optim", "training.optim")
