"""The figures of a sweep, one file each (`base.py` says what a figure is), and what they share.

Every figure shows the single bases or runs beside the mean, because transfer is often bimodal over seeds and a mean
with an interval hides that. Intervals are Student's t over base seeds, of P(trait) on the logit scale
(`subl_jax.statistics`).
"""

from subl_jax.results.figures import style
from subl_jax.results.figures.base import Figure, Tables

__all__ = ["Figure", "Tables", "style"]
