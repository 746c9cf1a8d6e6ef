"""What data tell of their writer, given a model that it may come from, one file each (docs/seams/audits.md)."""

from subl_jax.audits.chunks import in_chunks
from subl_jax.audits.mean_log_likelihood import MeanLogLikelihood
