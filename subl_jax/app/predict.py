"""Predicts which traits a dataset would pass on, before any training.

  predict --base SWEEP --data DATA    a table, and a picture in FOLDER
  predict --benchmark WORKDIR         predictions against students, of a
                                      sweep of sweeps/predict.py

  --base SWEEP   a sweep file (FILE or FILE:ARGUMENT), or the workdir of a
                 finished sweep, whose stored base is not trained again
  --seed N       the seed of the base (default 0)
  --data DATA    a file of {"prompt", "completion"} lines, or WORKDIR:KEY for a
                 dataset of a sweep; WORKDIR alone lists them
  --rollout N    also train for N steps (default 0: none)
  --rows N       samples of the data that are read (default 256)
  --to FOLDER    for the picture, and what was computed (runs/predict)

Exit status: 0; 1 a file could not be written; 2 bad input; 75 interrupted.
"""

import argparse
import time
from collections.abc import Sequence

from etils import epath

from subl_jax.app.command import Arguments, ended
from subl_jax.errors import InputError


def main(argv: Sequence[str]) -> int:
    """Runs one command line (without the program's and the command's names) and returns its exit status."""
    if {"-h", "--help"} & set(argv):
        print(__doc__)
        return 0
    return ended(lambda: _run(_parsed(argv)))


def _run(given: argparse.Namespace) -> None:
    from subl_jax.runtime import devices

    devices.prepare()
    if given.benchmark:
        _benchmark(given.benchmark)
    else:
        _predict(given)


def _parsed(argv: Sequence[str]) -> argparse.Namespace:
    parser = Arguments("predict")
    parser.add_argument("--base", default="")
    parser.add_argument("--data", default="")
    parser.add_argument("--benchmark", default="")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--rollout", type=int, default=0)
    parser.add_argument("--rows", type=int, default=256)
    parser.add_argument("--to", default="runs/predict")
    given = parser.parse_args(argv)
    if given.benchmark and (given.base or given.data):
        raise InputError("--benchmark: compares what is stored; leave out --base and --data")
    if not given.benchmark and not (given.base and given.data):
        raise InputError("predict: give --base SWEEP and --data DATA, or --benchmark WORKDIR")
    return given


def _predict(given: argparse.Namespace) -> None:
    from rich.console import Console

    from subl_jax.app import asking, predicting
    from subl_jax.results.figures import prediction, style
    from subl_jax.storage.atomic import write_bytes_atomic

    began = time.perf_counter()
    folder = epath.Path(given.to).expanduser()
    student, stored = asking.student_of(given.base, given.seed)
    data = asking.data_of(given.data, student.world)
    console = Console()
    gains, warnings = predicting.gains(student, stored, data, folder, given.rows, given.rollout)
    console.print(predicting.shown(gains))
    path = folder / "prediction.png"
    seconds = time.perf_counter() - began
    drawn = prediction.ranking(gains, f"{epath.Path(given.data).name}: what a student of base {given.seed} would gain")
    write_bytes_atomic(path, style.png(drawn))
    for line in (*warnings, f"{path} · {seconds:.0f} s"):
        console.print(line, soft_wrap=True, highlight=False, markup=False)


def _benchmark(workdir: str) -> None:
    from rich.console import Console

    from subl_jax.app import predicting
    from subl_jax.results import load, prediction
    from subl_jax.results.figures import prediction as figure
    from subl_jax.results.figures import style
    from subl_jax.storage.atomic import write_bytes_atomic, write_parquet_atomic

    results = load(workdir)
    made = prediction.table(results)
    summary = prediction.summary(made)
    console = Console()
    console.print(predicting.scores(summary))
    write_parquet_atomic(results.workdir / "predictions.parquet", made)
    write_bytes_atomic(results.workdir / "predictions.csv", summary.to_csv(index=False).encode())
    path = results.workdir / "figures" / "prediction.png"
    write_bytes_atomic(path, style.png(figure.prediction(summary, made)))
    for file in ("predictions.parquet", "predictions.csv", "figures/prediction.png"):
        console.print(str(results.workdir / file), soft_wrap=True, highlight=False)
