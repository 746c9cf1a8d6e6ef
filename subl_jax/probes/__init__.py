"""What is measured of a student at every point of its curve, one file a probe (docs/seams/probes.md)."""

from subl_jax.probes.direction import Direction, Patched, WithoutTeacher, WithoutVector
from subl_jax.probes.held_out import HeldOut
from subl_jax.probes.moved import Moved
from subl_jax.probes.parts import Parts
from subl_jax.probes.theorem import Theorem, cosine
