"""Old import paths: each file here is one, and names the new one in a line."""

import warnings


def say(old: str, new: str) -> None:
    """One deprecation line for whoever imported `subl_jax.<old>`."""
    warnings.warn(f"subl_jax.{old} is now subl_jax.{new}", DeprecationWarning, stacklevel=3)
