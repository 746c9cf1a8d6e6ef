"""What the host does for a `Transformed` dataset: the rows that the program selected, rewritten and kept as text."""

from typing import Any

import numpy as np
import pandas as pd

from subl_jax import specs

# The share of rows that may stay as they were.
_MOST_UNFIT = 0.05


class Rewriter:
    """Gathers the rows of one transformed dataset (`Collector`). All of them come in one round, and all are kept."""

    def __init__(self, node: specs.Transformed) -> None:
        self._node = node
        self._samples: np.ndarray | None = None
        self._unfit = 0

    @property
    def kept(self) -> int:
        return 0 if self._samples is None else self._node.size

    @property
    def enough(self) -> bool:
        return self._samples is not None

    def add(self, samples: np.ndarray) -> None:
        """samples: (size, …). The random numbers are of the node's own key: no neighbour changes them."""
        if not self.enough:
            rng = np.random.default_rng(int(self._node.key[:16], 16))
            rows = samples[: self._node.size]
            self._samples, self._unfit = self._node.transform.rewrite(rows, self._node.world, rng)

    def artefact(self) -> dict[str, np.ndarray]:
        return {"samples": self._samples}

    def info(self) -> dict[str, Any]:
        """How many rows could not be rewritten, and are as they were."""
        return {"unfit": self._unfit}

    def shortfall(self) -> str | None:
        """A transform that quietly does not apply would look like one without an effect."""
        if self._unfit <= _MOST_UNFIT * self._node.size:
            return None
        texts = f"{self._unfit} of {self._node.size} texts that {type(self._node.transform).__name__} made"
        return f"{texts} are not of the world's language, or too long for it"

    def table(self) -> pd.DataFrame:
        texts = self._node.world.texts(self._samples)
        return pd.DataFrame(texts, columns=["prompt", "completion"]).assign(kept=True, why=None)
