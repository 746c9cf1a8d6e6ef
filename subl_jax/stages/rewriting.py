"""What the host does for a `Transformed` dataset: the rows that the program selected, rewritten and kept as text."""

from typing import Any

import numpy as np
import pandas as pd

from subl_jax import specs


class Rewriter:
    """Gathers the rows of one transformed dataset (`Collector`). All of them come in one round, and all are kept."""

    def __init__(self, node: specs.Transformed) -> None:
        self._node = node
        self._samples: np.ndarray | None = None

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
            self._samples = self._node.transform.rewrite(samples[: self._node.size], self._node.world, rng)

    def artefact(self) -> dict[str, np.ndarray]:
        return {"samples": self._samples}

    def info(self) -> dict[str, Any]:
        return {"drawn": self._node.size, "kept": self._node.size, "kept_fraction": 1.0}

    def shortfall(self) -> str | None:
        return None

    def table(self) -> pd.DataFrame:
        texts = self._node.world.texts(self._samples)
        return pd.DataFrame(texts, columns=["prompt", "completion"]).assign(kept=True, why=None)
