"""Moved to `subl_jax.results` and `subl_jax.probes`."""
