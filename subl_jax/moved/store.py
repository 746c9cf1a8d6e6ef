"""Moved to `subl_jax.storage.store`."""

from subl_jax.moved import say
from subl_jax.storage.store import *  # noqa: F403

say("store", "storage.store")
