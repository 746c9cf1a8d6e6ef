"""Records: the numbers of a round, by name."""

import numpy as np
from lineages import WORLD

from subl_jax.engine import records


def test_vector_metrics_get_one_name_per_entry():
    traits = np.arange(2 * 3 * len(WORLD.traits)).reshape(2, 3, -1)
    named = records.named_metrics(WORLD, {"loss": np.ones((2, 3)), "trait": traits, "rate": traits + 1})
    assert named.keys() == {"loss", *(f"{m}/{t}" for m in ("trait", "rate") for t in WORLD.traits)}
    np.testing.assert_array_equal(named["trait/cat"], traits[..., 1])
    np.testing.assert_array_equal(named["rate/oak"], traits[..., len(WORLD.animals)] + 1)
    assert named["loss"].shape == named["trait/owl"].shape == (2, 3)
