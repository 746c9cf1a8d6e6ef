"""Several datasets in one, by shares: dilution of a teacher's data with trait-free data, or teachers mixed."""

import dataclasses
from collections.abc import Sequence
from typing import Any, ClassVar

import jax
import jax.numpy as jnp

from subl_jax.errors import InputError
from subl_jax.specs import Sources, Transform, static, traced
from subl_jax.specs.world import Array


@dataclasses.dataclass(frozen=True)
class Pool(Transform):
    """Of two sources, `share` of the rows are of the second one; of more, the rest is shared evenly by these.

    With two sources so: `share` 0 is the first alone, 1 the second alone. Each source gives its first rows, at most as
    many as it has; the order is random. `share` is a number in the program, so a sweep over it compiles once.
    `rows` is the size (0: that of the first source).
    """

    kind: ClassVar[str] = "pool"

    share: float = traced(0.5, ge=0.0, le=1.0)
    rows: int = static(0, ge=0)

    def size(self, sizes: Sequence[int]) -> int:
        return self.rows or sizes[0]

    def counts(self, size: int, sources: int) -> list[int]:
        """How many rows each source gives, on the host; the program agrees (tested)."""
        bounds = [round(float(self._bound(i, sources)) * size) for i in range(sources + 1)]
        return [after - before for before, after in zip(bounds, bounds[1:], strict=False)]

    def _bound(self, i: Any, sources: int) -> Any:
        """The share of the rows that the first `i` sources give together."""
        if sources == 1 or i == sources:
            return 1.0
        return 0.0 if i == 0 else 1 - self.share * (sources - i) / (sources - 1)

    def check_sources(self, data: Any) -> None:
        if len(data.sources) < 2:
            raise InputError("Pool: needs at least two sources; give Transformed(sources=(a, b), …)")
        wanted = self.counts(data.size, len(data.sources))
        for i, (source, count) in enumerate(zip(data.sources, wanted, strict=True)):
            if count > source.size:
                raise InputError(
                    f"Pool.share = {self.share:g}: takes {count} rows of source {i}, which has only {source.size}; "
                    "give a larger dataset, or fewer rows"
                )

    def select(self, key: Array, sources: Sources, size: int) -> Array:
        count = len(sources.rows)
        bounds = jnp.stack([jnp.round(jnp.float32(self._bound(i, count)) * size) for i in range(count + 1)])
        place = jnp.arange(size)
        chosen = sources.rows[0][place % len(sources.rows[0])]
        for i, rows in enumerate(sources.rows[1:], 1):
            own = rows[jnp.clip(place - bounds[i].astype(jnp.int32), 0, len(rows) - 1)]
            here = (place >= bounds[i]).reshape(-1, *[1] * (rows.ndim - 1))
            chosen = jnp.where(here, own, chosen)
        return jax.random.permutation(key, chosen)
