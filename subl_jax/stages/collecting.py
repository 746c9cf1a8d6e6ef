"""What teachers write, on the host: filter it, and keep enough of it."""

from typing import Any

import numpy as np
import pandas as pd

from subl_jax import specs


class Collector:
    """Gathers one dataset from the rounds of samples its teacher writes.

    Only what the dataset itself needs is looked at: rounds drawn because a neighbour was still short leave no trace.
    """

    def __init__(self, node: specs.Dataset) -> None:
        self._node = node
        self._samples: list[np.ndarray] = []  # kept ones, (n, …)
        self._tables: list[pd.DataFrame] = []
        self._reasons: list[str | None] = []
        self._kept = 0

    @property
    def kept(self) -> int:
        """Samples gathered so far."""
        return self._kept

    @property
    def enough(self) -> bool:
        return self._kept >= self._node.size

    def add(self, samples: np.ndarray) -> None:
        """One round of samples, in the order they were drawn; those after the last one needed are left out."""
        if self.enough:
            return
        texts = self._node.world.texts(samples)
        reasons = self._node.filter.reasons([completion for _, completion in texts])
        kept = np.asarray([reason is None for reason in reasons])
        needed = self._node.size - self._kept
        used = int(np.searchsorted(np.cumsum(kept), needed)) + 1 if kept.sum() >= needed else len(kept)
        self._samples.append(samples[:used][kept[:used]])
        self._reasons += reasons[:used]
        self._kept += int(kept[:used].sum())
        frame = pd.DataFrame(texts[:used], columns=["prompt", "completion"])
        self._tables.append(frame.assign(kept=kept[:used], why=reasons[:used]))

    def info(self) -> dict[str, Any]:
        """What the filter kept and why it dropped the rest (`Filter.retention`)."""
        return self._node.filter.retention(self._reasons)

    def shortfall(self) -> str | None:
        """Why there is no dataset, or None."""
        if self.enough:
            return None
        drawn = len(self._reasons)
        return (
            f"the filter kept {self._kept} of {drawn} samples ({self._kept / max(drawn, 1):.1%}), "
            f"{self._node.size} were wanted; raise the dataset's budget ({self._node.budget:g}) or loosen the filter"
        )

    def artefact(self) -> dict[str, np.ndarray]:
        """samples: (size, …); zeros stand for samples that were not to be had."""
        kept = np.concatenate(self._samples)
        missing = self._node.size - len(kept)
        return {"samples": np.concatenate([kept, np.zeros((missing, *kept.shape[1:]), kept.dtype)])}

    def table(self) -> pd.DataFrame:
        """Every sample drawn for the dataset: prompt, completion, kept, why (the reason it was dropped)."""
        return pd.concat(self._tables, ignore_index=True)
