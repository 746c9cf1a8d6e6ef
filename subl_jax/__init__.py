"""subl_jax: subliminal-learning experiments, many at once."""

__version__ = "0.1.0"
