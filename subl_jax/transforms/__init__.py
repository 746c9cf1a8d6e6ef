"""Dataset(s) → dataset, one file each (docs/seams/transforms.md)."""

from subl_jax.transforms.pool import Pool
from subl_jax.transforms.shuffle import ShuffleNumbers
from subl_jax.transforms.sort import SortNumbers
from subl_jax.transforms.without_numbers import WithoutNumbers
from subl_jax.transforms.without_suspicious import WithoutSuspicious
