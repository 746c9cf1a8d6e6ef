"""Probes of students that are there already: measured once, of the stored models; nothing is trained again."""

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import pandas as pd

from subl_jax import specs
from subl_jax.errors import InputError
from subl_jax.results.load import Results

_PROBED = 128  # samples of the data, as while a sweep runs


def measured(
    results: Results,
    run_ids: Iterable[str],
    probes_of: Callable[[specs.Student], Iterable[specs.Probe]],
    teachers: Mapping[str, str] | None = None,
) -> pd.DataFrame:
    """What probes say of stored students at their end: columns `run_id`, `metric`, `value`, as in `curves`.

    Probes that read the batch, the loss or other nodes cannot be asked afterwards.

    Args:
      run_ids: of `results.runs`.
      probes_of: student → its probes. Those that differ in traced fields only are one program.
      teachers: run → the run whose teacher and data are asked, where these are not its own: of a control the student
        that it stands beside, say.

    Raises:
      InputError: a model or dataset is not stored, or no teacher can be asked.
    """
    programs: dict[str, Any] = {}
    rows = []
    for run_id in run_ids:
        student = results.student(run_id)
        asked = results.student((teachers or {}).get(run_id, run_id)).node
        written = asked.data
        if not isinstance(written, specs.Dataset) or not isinstance(written.teacher, specs.Teacher):
            raise InputError(f"run {run_id}: no teacher has written its data; name another run in `teachers`")
        models = [
            student.params,
            *(
                _artefact(results, node)["params"]
                for node in (student.node.start, written.teacher, written.teacher.start)
            ),
        ]
        samples = _artefact(results, written)["samples"][:_PROBED]
        world = student.node.world
        for probe in probes_of(asked):
            probe.check_student(asked)
            program = programs.setdefault(f"{world} {specs.static_form(probe)}", _program(world, probe))
            found = program(specs.traced_values(probe, world), models, jnp.asarray(samples))
            rows += [(run_id, metric, float(value)) for metric, value in found.items()]
    return pd.DataFrame(rows, columns=["run_id", "metric", "value"])


def _program(world: specs.World, probe: specs.Probe) -> Callable[..., dict[str, jax.Array]]:
    @jax.jit
    def measure(values: dict[str, Any], models: list[Any], samples: jax.Array) -> dict[str, jax.Array]:
        params, start, teacher, before = models
        batch = world.channel_batch(samples, True, None)
        context = specs.Context(world, jax.random.key(0), start, teacher, {})
        return specs.bind(probe, values).measure(specs.Moment(context, params, before, 0.0, None, batch, None))

    return measure


def _artefact(results: Results, node: specs.Node) -> Any:
    found = results.store.get(node.key)
    if found is None:
        raise InputError(f"{results.workdir}: {type(node).__name__.lower()} {node.key[:12]}… is not stored")
    return found
