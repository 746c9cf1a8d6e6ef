"""What a batch of lanes has measured so far."""

import numpy as np

from subl_jax import specs


def named_metrics(world: specs.World, record: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """A record with one entry per number: `trait` of shape (…, traits) becomes `trait/<name>` of shape (…) each."""
    named: dict[str, np.ndarray] = {}
    for metric, values in record.items():
        names = world.labels.get(metric)
        if names is None:
            named[metric] = values
        else:
            named.update({f"{metric}/{name}": values[..., i] for i, name in enumerate(names)})
    return named
