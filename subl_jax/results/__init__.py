"""What a sweep leaves for people: tables, comparisons, figures, the page; and how they are read again."""

from subl_jax.results.load import Model, Results, load
from subl_jax.results.wide import wide_summary

__all__ = ["Model", "Results", "load", "wide_summary"]
