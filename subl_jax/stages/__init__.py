"""What each kind of node computes, one file a stage. Pure, for one model: no lane axis."""

from subl_jax.stages.stages import *  # noqa: F403
