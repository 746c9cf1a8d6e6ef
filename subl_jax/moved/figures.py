"""Moved to `subl_jax.results.figures`, a file for each figure, and `subl_jax.results.formats`."""

from subl_jax.moved import say
from subl_jax.results.figures.comparison import comparison  # noqa: F401
from subl_jax.results.figures.details import details  # noqa: F401
from subl_jax.results.figures.dose import dose_response  # noqa: F401
from subl_jax.results.figures.retention import retention  # noqa: F401
from subl_jax.results.figures.style import arm_colours  # noqa: F401
from subl_jax.results.figures.theorem import theorem  # noqa: F401
from subl_jax.results.figures.training import training_curves  # noqa: F401
from subl_jax.results.figures.trait_matrix import trait_matrix  # noqa: F401
from subl_jax.results.figures.transfer import transfer_curves  # noqa: F401
from subl_jax.results.formats import arm_label, compared_label, factor, number, p_value  # noqa: F401

say("figures", "results.figures")
