"""Moved to `subl_jax.storage.store`."""

from subl_jax.storage.store import *  # noqa: F403
from subl_jax.moved import say

say("store", "storage.store")
