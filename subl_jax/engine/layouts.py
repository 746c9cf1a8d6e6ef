"""The layout of a group, measured once per machine and shape, and remembered in the user's cache folder."""

import math
from collections.abc import Callable, Sequence

from subl_jax.engine.lanes import Layout, Program
from subl_jax.runtime import cluster, machine_cache

# Steps of the short rounds that layouts are timed on: enough for the steps to outweigh the measurement at their end.
TIMED_STEPS = 12
_FILE = "layouts.json"
# A layout must be this much faster to be worth its compilation.
_WORTHWHILE = 0.97


def choose(
    form: str,
    candidates: Sequence[Layout],
    total_steps: int,
    measure_above: float,
    timed: Callable[[Layout], tuple[float, Program | None]],
    compiled: Callable[[Layout], Program],
) -> Program:
    """The program in the layout to use.

    Args:
      form: the group's static fields.
      candidates: the default layout first, then others in the order of how far they are from it.
      total_steps: lane-steps of the whole group.
      measure_above: only a group that would take longer, in seconds with the default layout, is worth measuring.
      timed: layout → (seconds per lane-step, the same in every process; program); infinite, and None, without room.
      compiled: layout → program.
    """
    # The cache folder and the clock of one process decide for all.
    known = _known(form, candidates)
    place = cluster.peers().first(None if known is None else candidates.index(known))
    if place is not None:
        return compiled(candidates[place])
    seconds, best = timed(candidates[0])
    if best is None:
        return compiled(candidates[0])  # which says why not
    if seconds * total_steps < measure_above:
        return best
    measured = {str(candidates[0]): seconds}
    for layout in candidates[1:]:
        other_seconds, other = timed(layout)
        measured[str(layout)] = other_seconds
        if other_seconds < _WORTHWHILE * seconds:
            seconds, best = other_seconds, other
    _remember(form, best.layout, measured)
    return best


def _known(form: str, candidates: Sequence[Layout]) -> Layout | None:
    """The candidate that is like the remembered layout; for another number of lanes it is not quite the same."""
    try:
        entry = machine_cache.recall(_FILE, form)
        devices, width = int(entry["devices"]), int(entry["width"])
    except (KeyError, TypeError, ValueError):
        return None

    def doublings_apart(layout: Layout) -> float:
        return max(abs(math.log2(layout.devices / devices)), abs(math.log2(layout.width / width)))

    nearest = min(candidates, key=doublings_apart)
    return nearest if doublings_apart(nearest) < 1 else None


def _remember(form: str, layout: Layout, measured: dict[str, float]) -> None:
    entry = {"devices": layout.devices, "width": layout.width, "seconds_per_lane_step": measured}
    machine_cache.remember(_FILE, form, entry)
