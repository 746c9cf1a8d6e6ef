"""Batches that died with their process: one that was too large for the machine's memory is halved, not tried again.

What the system kills for its memory gets no error, and launchers start it again as it was. So a batch has a file in
the workdir while it runs, which is only left behind where the process had no chance to remove it.
"""

import contextlib
import hashlib
import json
from collections.abc import Iterator, Sequence
from typing import Any

from etils import epath

from subl_jax import specs
from subl_jax.engine import lanes
from subl_jax.errors import OutOfMemory, PeerLost
from subl_jax.runtime import cluster
from subl_jax.runtime.kills import Kills
from subl_jax.storage.atomic import write_json_atomic
from subl_jax.storage.retrying import patiently

# Deaths of a batch without a save in between from which it is taken for too large, where the machine does not tell.
_ENOUGH = 2
_ENOUGH_OF_THE_SMALLEST = 5  # which ends the sweep: machines are also lost


class Deaths:
    """What died in a workdir while it ran, and of how many lanes its batches are to be. All processes ask together."""

    def __init__(self, workdir: epath.Path) -> None:
        self._peers = cluster.peers()
        self._folder = workdir / "running"
        self._now: epath.Path | None = None

    def most(self, form: str) -> int | None:
        """The most lanes of a batch of this form, where more have killed their process."""
        found = self._peers.first(_read(self._limit(form)) if self._peers.leads else None)
        return found and int(found["lanes"])

    @contextlib.contextmanager
    def noticed(self, form: str, nodes: Sequence[specs.Node], layout: lanes.Layout) -> Iterator[None]:
        """Around the run of a batch.

        Raises:
          OutOfMemory: before it runs, as it has killed its process.
        """
        path = self._folder / f"{_hash(form)}-{_hash(','.join(node.key for node in nodes))}.json"
        smallest = lanes.narrower(layout) is None
        enough = _ENOUGH_OF_THE_SMALLEST if smallest else _ENOUGH
        if self._peers.first(self._is_too_large(path, enough) if self._peers.leads else None):
            if self._peers.leads and not smallest:
                self._write(self._limit(form), {"lanes": layout.lanes - 1})
            self._remove(path)
            raise OutOfMemory("the system killed the process while it ran")
        if self._peers.leads:
            self._write(path, {"deaths": self._deaths(path), "kills": Kills.so_far().to_json()})
        self._now = path
        try:
            yield
        except PeerLost:
            raise  # it was another process of the batch that died
        except BaseException:
            self._remove(path)
            raise
        self._remove(path)

    def saved(self) -> None:
        """The batch that runs has been saved: what dies from here on does so at another place."""
        if self._peers.leads and self._now is not None:
            self._write(self._now, {"deaths": 0, "kills": Kills.so_far().to_json()})

    def remove_all(self) -> None:
        """At the end of a sweep."""
        if self._peers.leads:
            patiently(lambda: self._folder.rmtree(missing_ok=True))

    def _is_too_large(self, path: epath.Path, enough: int) -> bool:
        before = _read(path)
        if before is None:
            return False
        killed = Kills.so_far().since(Kills(**before["kills"]))
        return self._deaths(path) >= enough if killed is None else killed

    def _deaths(self, path: epath.Path) -> int:
        """How often the batch has died, this time included, if it has."""
        before = _read(path)
        return 0 if before is None else int(before["deaths"]) + 1

    def _limit(self, form: str) -> epath.Path:
        return self._folder / f"{_hash(form)}.json"

    def _write(self, path: epath.Path, value: dict[str, Any]) -> None:
        with contextlib.suppress(Exception):  # it is a help: a workdir that fails says so when results are stored
            self._folder.mkdir(parents=True, exist_ok=True)
            write_json_atomic(path, value)

    def _remove(self, path: epath.Path) -> None:
        self._now = None
        if self._peers.leads:
            with contextlib.suppress(Exception):
                path.unlink(missing_ok=True)


def _read(path: epath.Path) -> dict[str, Any] | None:
    """None where there is none, or a damaged one."""
    with contextlib.suppress(Exception):  # an object store's client raises errors of its own kind
        return json.loads(path.read_bytes())
    return None


def _hash(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:16]
