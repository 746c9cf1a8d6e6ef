"""Moved to `subl_jax.runtime.devices`."""

from subl_jax.moved import say
from subl_jax.runtime.devices import *  # noqa: F403

say("devices", "runtime.devices")
