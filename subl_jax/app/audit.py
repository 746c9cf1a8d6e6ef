"""Tells how unlike a base's own data are, and towards which trait.

  audit --base SWEEP --data FILE   a base of a sweep; --seed N (default 0)
  audit --model NAME --data FILE   a chat model: smollm2, a folder, a hub name
  audit --benchmark WORKDIR        how often a sweep's audits were right

  --null FILE     a corpus that you trust (default: what the base writes)
  --traits A,B    a chat model's animals to look for (default: twelve)
  --keeps WHAT    of a chat model's own corpus: numbers, constrained (numbers,
                  as nothing else can be written), anything, auto (default)
  --rows N        samples of the data that are read (default 256)
  --null-rows N   samples a chat model writes (default 512)
  --corpora N     corpora that a sweep's base writes (default 400)
  --level A       of the test (default 0.01)
  --to FOLDER     for the page and what was computed (runs/audit)
  --report FILE   the page (default: FOLDER/audit.html)

Exit status: 0 not told from the base's own; 3 a trait is found; 4 not the
base's own, no trait found; 1 a file could not be written; 2 bad input; 75
interrupted.
"""

import argparse
import json
import time
from collections.abc import Sequence

from etils import epath

from subl_jax.app.command import Arguments, ended
from subl_jax.errors import InputError


def main(argv: Sequence[str]) -> int:
    """Runs one command line (without the program's and the command's names) and returns its exit status."""
    verdict = []
    status = ended(lambda: verdict.append(_run(_parsed(argv))))
    return status or verdict[0]


def _run(given: argparse.Namespace) -> int:
    from subl_jax.runtime import devices

    devices.prepare()
    if given.benchmark:
        return _benchmark(given.benchmark)
    return _audit(given)


def _parsed(argv: Sequence[str]) -> argparse.Namespace:
    parser = Arguments("audit")
    for name in ("base", "model", "data", "null", "traits", "benchmark", "report"):
        parser.add_argument(f"--{name}", default="")
    parser.add_argument("--keeps", default="auto", choices=("auto", "numbers", "constrained", "anything"))
    for name, default in (("rows", 256), ("null-rows", 512), ("corpora", 400), ("seed", 0)):
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--level", type=float, default=0.01)
    parser.add_argument("--to", default="runs/audit")
    given = parser.parse_args(argv)
    if given.benchmark:
        if given.base or given.model or given.data:
            raise InputError("--benchmark: compares what is stored; leave out --base, --model and --data")
        return given
    if bool(given.base) == bool(given.model) or not given.data:
        raise InputError("audit: give --data FILE, and one of --base SWEEP and --model NAME; or --benchmark WORKDIR")
    if given.base and given.traits:
        raise InputError("--traits: a base of a sweep looks for all traits of its world; leave it out")
    if not 0 < given.level < 1:
        raise InputError(f"--level {given.level:g}: between 0 and 1")
    if given.corpora * given.level < 1:
        least = f"a level of {given.level:g} needs at least {round(1 / given.level)}"
        raise InputError(f"--corpora {given.corpora}: nothing could be found; {least}")
    for name in ("rows", "null_rows"):
        if getattr(given, name) < 8:
            raise InputError(f"--{name.replace('_', '-')} {getattr(given, name)}: at least 8")
    return given


def _audit(given: argparse.Namespace) -> int:
    from rich.console import Console

    from subl_jax.app import auditing, facts
    from subl_jax.results import audit_page
    from subl_jax.storage.atomic import write_bytes_atomic, write_parquet_atomic

    began = time.perf_counter()
    folder = epath.Path(given.to).expanduser()
    data, rows, whole = auditing.few_of(given.data, given.rows, folder)
    if given.base:
        question = auditing.of_sweep(given.base, given.seed, given.data, data, given.null, given.corpora)
        by = f"base {given.seed} of {given.base}"
    else:
        traits = tuple(name.strip() for name in given.traits.split(",") if name.strip())
        question = auditing.of_model(given.model, data, given.null, traits, given.keeps, given.null_rows)
        by = given.model
    answer = auditing.answered(question, folder)
    name = epath.Path(given.data).name
    shown = audit_page.Shown(**vars(answer), name=name, by=by, samples=whole, level=given.level)
    page = epath.Path(given.report).expanduser() if given.report else folder / "audit.html"
    write_bytes_atomic(page, audit_page.page(shown).encode())
    found = json.dumps(audit_page.as_json(shown, facts.machine()["versions"]), indent=1)
    write_bytes_atomic(folder / "audit.json", found.encode())
    write_parquet_atomic(folder / "samples.parquet", audit_page.samples_table(shown))
    console = Console()
    console.print(auditing.table(shown))
    for line in (audit_page.headline(shown), *(f"note: {note}" for note in shown.notes)):
        console.print(line, highlight=False, markup=False)
    console.print(f"{page} · {rows} samples · {time.perf_counter() - began:.0f} s", soft_wrap=True, highlight=False)
    return answer.verdict.status(given.level)


def _benchmark(workdir: str) -> int:
    from rich.console import Console

    from subl_jax.app import auditing
    from subl_jax.results import audit_benchmark, load
    from subl_jax.results.figures import audit as figure
    from subl_jax.results.figures import style
    from subl_jax.storage.atomic import write_bytes_atomic, write_parquet_atomic

    results = load(workdir)
    rates = audit_benchmark.rates(results)
    summary = audit_benchmark.summary(rates)
    write_parquet_atomic(results.workdir / "audit_rates.parquet", rates)
    write_bytes_atomic(results.workdir / "audit_rates.csv", summary.to_csv(index=False, float_format="%.5g").encode())
    write_bytes_atomic(results.workdir / "figures" / "audit.png", style.png(figure.audit(summary)))
    console = Console()
    for each in auditing.rate_tables(summary):
        console.print(each)
    for file in ("audit_rates.parquet", "audit_rates.csv", "figures/audit.png"):
        console.print(str(results.workdir / file), soft_wrap=True, highlight=False)
    return 0
