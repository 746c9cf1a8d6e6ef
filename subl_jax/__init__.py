"""subl_jax: subliminal-learning experiments, many at once.

import subl_jax
results = subl_jax.run(students, workdir="runs/mine")   # students: any iterable of subl_jax.specs.Student
results = subl_jax.load("runs/traits")                  # a finished sweep
results.runs, results.curves, results.comparisons       # DataFrames
results.student(run_id).apply(tokens)                   # a stored model
"""

import pathlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterable

    from subl_jax.results import Results
    from subl_jax.specs import Student

__version__ = "0.1.0"

# Old import paths (`subl_jax.filters`) are files there, which name the new ones.
__path__ = [*__path__, str(pathlib.Path(__file__).parent / "moved")]


def run(students: "Iterable[Student]", workdir: Any, **options: Any) -> "Results":
    """Computes what is missing of `students` in `workdir` and returns its tables. Options and errors: `running.run`."""
    from subl_jax.app import running
    from subl_jax.runtime import devices

    devices.prepare()
    return running.run(students, workdir, **options).results


def load(workdir: Any) -> "Results":
    """The tables and models of a finished sweep. Raises as `results.load`."""
    from subl_jax import results

    return results.load(workdir)
