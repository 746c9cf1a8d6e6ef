"""What a student minimises, one file each (docs/seams/objectives.md)."""

from subl_jax.objectives.erased import Erased
from subl_jax.objectives.hard import Hard
from subl_jax.objectives.kl_to_start import KlToStart
from subl_jax.objectives.replaced import Replaced
from subl_jax.objectives.soft import Soft
from subl_jax.objectives.squared import Squared
from subl_jax.objectives.weighted import Weighted

# What `Student.targets` may say in one word.
SHORTHANDS = {each.shorthand: each for each in (Hard(), Soft(), Squared())}
