"""Which node is in which shard, in memory."""

from collections.abc import Iterable, Iterator

from subl_jax.storage.shards import STATUSES, Row, Shard


class Index:
    """The shards of a store by id, and the places of every node in them: the same node may be in several."""

    def __init__(self) -> None:
        self._shards: dict[str, Shard] = {}
        self._places: dict[str, dict[str, int]] = {}  # key → shard id → row

    def __contains__(self, key: str) -> bool:
        """Whether a node is in it."""
        return key in self._places

    def __iter__(self) -> Iterator[str]:
        """The keys of all nodes."""
        return iter(self._places)

    def shards(self) -> Iterable[Shard]:
        return self._shards.values()

    def shard(self, id: str) -> Shard | None:
        return self._shards.get(id)

    def add(self, shard: Shard) -> None:
        self._shards[shard.id] = shard
        for index, row in enumerate(shard.rows):
            self._places.setdefault(row.key, {})[shard.id] = index

    def drop(self, shard: Shard) -> None:
        del self._shards[shard.id]
        for row in shard.rows:
            del self._places[row.key][shard.id]
            if not self._places[row.key]:
                del self._places[row.key]

    def place(self, key: str) -> tuple[Shard, int]:
        """Where the best copy of a node is: a lane that failed may have been computed again in another batch.

        Raises KeyError.
        """
        places = [(self._shards[id], index) for id, index in self._places[key].items()]
        return min(places, key=lambda place: (STATUSES.index(place[0].rows[place[1]].status), place[0].bare))

    def row(self, key: str) -> Row:
        """Raises KeyError."""
        shard, index = self.place(key)
        return shard.rows[index]

    def ids(self, keys: Iterable[str]) -> set[str]:
        """The shards of those keys that are in it."""
        return {self.place(key)[0].id for key in keys if key in self._places}
