"""Several processes that run one sweep: they see the same files, have the same plan, and start from one store."""

import dataclasses
import hashlib
import json
import uuid
from collections.abc import Sequence

from etils import epath

from subl_jax import specs
from subl_jax.engine.observers import Display
from subl_jax.engine.plan import Plan, make_plan, plan_of
from subl_jax.engine.settings import Settings
from subl_jax.errors import InputError
from subl_jax.runtime.cluster import Peers
from subl_jax.storage.atomic import TEMPORARY
from subl_jax.storage.store import Store
from subl_jax.storage.workdir import remove_leftovers


def opened(
    peers: Peers, workdir: epath.Path, students: Sequence[specs.Student], display: Display, tidy: bool = True
) -> tuple[Store, Plan]:
    """The store and the plan of what is left. One process tidies up and reads the store, for all."""

    def open_first() -> tuple[Store, Plan] | None:
        if not peers.leads:
            return None
        remove_leftovers(workdir)
        store = Store(workdir, warn=display.warn, tidy=tidy)
        return store, plan_of(students, store)

    first = peers.together(open_first)
    entries = peers.first(first and peers.count > 1 and first[0].entries())
    if first:
        return first
    store = Store(workdir, warn=display.warn, entries=entries)
    return store, make_plan(students, store.done(), store.bare())


def check_shared(peers: Peers, workdir: epath.Path) -> None:
    """Raises InputError where not all processes see the same files in `workdir`."""
    probe = workdir / f".probe{TEMPORARY}-{peers.first(uuid.uuid4().hex[:12])}"
    peers.together(lambda: probe.write_bytes(b"") if peers.leads else None)
    sees = peers.gather(probe.exists())
    if peers.leads:
        probe.unlink()
    if not all(sees):
        raise InputError(
            f"--workdir {workdir}: process {sees.index(False)} does not see what process 0 writes there; "
            "give a directory on storage that all processes share"
        )


def check_equal(peers: Peers, plan: Plan, settings: Settings) -> None:
    """Raises InputError where the processes were started with sweeps or settings that differ."""
    keys = [[group.form, *(node.key for node in group.nodes)] for group in plan.groups]
    digests = peers.gather(hashlib.sha256(json.dumps([keys, dataclasses.asdict(settings)]).encode()).hexdigest())
    odd = next((i for i, digest in enumerate(digests) if digest != digests[0]), None)
    if odd is not None:
        raise InputError(
            f"process {odd} was started with another sweep or other settings than process 0; "
            "start all with the same command line, but for --process_id"
        )
