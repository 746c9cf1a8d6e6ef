"""Writes students and data for peft, transformers and datasets.

  export WORKDIR                                         lists the runs
  export WORKDIR --run RUN_ID --to FOLDER [--what=…]     writes one

  --run RUN_ID      a student, from the column run_id of runs.parquet; several
                    with commas, or all; of several each has its own folder
  --to FOLDER       a new or an empty folder
  --what=adapter    for peft: adapter_config.json, adapter_model.safetensors;
                    the default where the student has adapters
  --what=model      for transformers: config.json, weights and tokenizer,
                    adapters merged in; the default else
  --what=data       for datasets: what the student learnt from, as parquet and
                    messages.jsonl

Each comes with a README.md that says where it comes from.

Exit status: 0 all is written; 1 a file could not be written; 2 bad input.
"""

import argparse
from collections.abc import Sequence

from etils import epath

from subl_jax.app.command import Arguments, ended
from subl_jax.errors import InputError
from subl_jax.results import Results, load
from subl_jax.runtime import devices

_SHOWN = 20


def main(argv: Sequence[str]) -> int:
    """Runs one command line (without the program's and the command's names) and returns its exit status."""
    if {"-h", "--help"} & set(argv):
        print(__doc__)
        return 0
    return ended(lambda: _export(_parsed(argv)))


def _export(given: argparse.Namespace) -> None:
    devices.prepare()
    results = load(given.workdir)
    if not given.run:
        print(_listing(results))
        return
    for line in _exported(results, given.run, given.to, given.what):
        print(line)


def _parsed(argv: Sequence[str]) -> argparse.Namespace:
    parser = Arguments("export")
    parser.add_argument("workdir")
    parser.add_argument("--run", default="")
    parser.add_argument("--to", default="")
    parser.add_argument("--what", choices=("adapter", "model", "data"), default=None)
    given = parser.parse_args(argv)
    if given.run and not given.to:
        raise InputError("--run needs --to FOLDER, where it goes")
    if given.to and not given.run:
        raise InputError("--to needs --run RUN_ID, what goes there; without both this lists the runs")
    return given


def _exported(results: Results, runs: str, to: str, what: str | None) -> list[str]:
    ids = list(results.runs.run_id) if runs == "all" else [each for each in runs.split(",") if each]
    lines = []
    for run_id in ids:
        folder = epath.Path(to).expanduser() / run_id if len(ids) > 1 else epath.Path(to).expanduser()
        kind = what or _default(results, run_id)
        {"adapter": results.save_adapter, "model": results.save_model, "data": results.save_dataset}[kind](
            run_id, folder
        )
        lines.append(f"{kind} of run {run_id}: {folder}")
    return lines


def _default(results: Results, run_id: str) -> str:
    tuned = results.student(run_id).node.tuned
    return "adapter" if tuned and tuned.lora else "model"


def _listing(results: Results) -> str:
    rows = results.runs[["run_id", "arm", "trait", "base_seed", "seed", "status", "target_end"]]
    text = rows.head(_SHOWN).to_string(index=False, float_format=lambda x: f"{x:.3g}")
    more = len(rows) - _SHOWN
    return text + (f"\n… and {more} more, in {results.workdir / 'runs.parquet'}" if more > 0 else "")
