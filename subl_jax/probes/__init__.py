"""What is measured of a student at every point of its curve, one file a probe (docs/seams/probes.md)."""

from subl_jax.probes.theorem import Theorem, cosine
