"""What experiments are made of: model × channel × traits, one file a world."""

import pathlib

# Old import paths (`subl_jax.worlds.pretrained`) are files there, which name the new ones.
__path__ = [*__path__, str(pathlib.Path(__file__).parents[1] / "moved" / "worlds")]
