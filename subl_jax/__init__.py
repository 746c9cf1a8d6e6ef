"""subl_jax: subliminal-learning experiments, many at once.

import subl_jax
results = subl_jax.run(students, workdir="runs/mine")   # students: any iterable of subl_jax.specs.Student
results = subl_jax.load("runs/traits")                  # a finished sweep
results.runs, results.curves, results.summary           # DataFrames
results.student(run_id).apply(tokens)                   # a stored model
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterable

    from subl_jax.results import Results
    from subl_jax.specs import Student

__version__ = "0.1.0"


def run(students: "Iterable[Student]", workdir: Any, **options: Any) -> "Results":
    """Computes what is missing of `students` in `workdir` and returns its tables. Options and errors: `running.run`."""
    from subl_jax import devices, running

    devices.prepare()
    return running.run(students, workdir, **options).results


def load(workdir: Any) -> "Results":
    """The tables and models of a finished sweep. Raises as `results.load`."""
    from subl_jax import results

    return results.load(workdir)
