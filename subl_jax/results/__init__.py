"""What a sweep leaves for people: tables, comparisons, figures, the page; and how they are read again."""

from subl_jax.results.load import Model, Results, load

__all__ = ["Model", "Results", "load"]
