"""What to compute: frozen specs that nest by value. Equal specs are one computation."""

from subl_jax.specs.nodes import *  # noqa: F403
from subl_jax.specs.nodes import _checks, _coerced  # noqa: F401
