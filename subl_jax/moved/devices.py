"""Moved to `subl_jax.runtime.devices`."""

from subl_jax.runtime.devices import *  # noqa: F403
from subl_jax.moved import say

say("devices", "runtime.devices")
