"""Batches as tasks on the machines of a Ray cluster.

A sweep computes on a `Fleet` where it is given one. `cluster.py` connects and knows what a batch takes of a machine,
`driver.py` hands batches in, `worker.py` computes one, and with `slices.py` several machines compute one together.
"""

from subl_jax.fleet.cluster import Cluster, Fleet

__all__ = ["Cluster", "Fleet"]
