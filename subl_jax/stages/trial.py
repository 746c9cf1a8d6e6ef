"""A member of a seam tried before anything is computed: its program is traced, and a mistake in it is one line."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from subl_jax import specs
from subl_jax.errors import InputError
from subl_jax.stages.shapes import world_shapes
from subl_jax.stages.stage import ShapesOf


def traced(
    node: specs.Node,
    of: ShapesOf,
    start: Callable[..., Any],
    advance: Callable[..., tuple[Any, Any]],
    members: list[specs.Spec],
) -> tuple[Any, dict[str, Any]]:
    """The shapes of the state and of the record after one step with a measurement.

    Raises:
      InputError: the program cannot be traced; the line names the members that are in it.
    """
    values = {
        name: jax.ShapeDtypeStruct((), jnp.int32 if isinstance(value, int) else jnp.float32)
        for name, value in specs.traced_values(node).items()
    }
    inputs = {name: of(parent) for name, parent in node.inputs().items()}

    def program(values: Any, key: jax.Array, inputs: Any, world: Any) -> tuple[Any, Any]:
        spec, inputs = specs.bind(node, values), {**inputs, "world": world}
        return advance(spec, key, inputs, start(spec, key, inputs), jnp.int32(1), True)

    key = jax.eval_shape(lambda: jax.random.key(0))
    try:
        return jax.eval_shape(program, values, key, inputs, world_shapes(node.world))
    except InputError:
        raise
    except Exception as error:  # whatever somebody's own code may do
        names = " or ".join(type(member).__name__ for member in members)
        line = (str(error).splitlines() or [""])[0]
        raise InputError(f"{names}: cannot be computed: {type(error).__name__}: {line}") from error


def check_metrics(record: dict[str, Any], probes: tuple[specs.Probe, ...]) -> None:
    """Raises InputError where a probe does not give what it declares, or gives something other than numbers."""
    for probe in probes:
        for name in probe.metrics:
            where = f"{type(probe).__name__}.measure: the metric {name!r}"
            given = [value for each, value in record.items() if each == name or each.startswith(f"{name}/")]
            if not given:
                raise InputError(f"{where} is declared, and not among what it gives")
            for value in given:
                if value.shape:
                    raise InputError(f"{where} has shape {value.shape}; expected a number")
