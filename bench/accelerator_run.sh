#!/usr/bin/env bash
# Whatever is to be measured on an accelerator, most important first, within nine minutes (accelerator_run.py says how).
#
#   bench/accelerator_run.sh [--minutes 9] [--out FOLDER] [--model MODEL] [--only PART ...] [--tiny]
#
# Results go to FOLDER, or to $OUT, or to bench/results/accelerator. What is there already is not measured again, and what
# was cut short goes on: start it as often as a machine is lent. PYTHON: the interpreter, .venv's if there is one.
set -euo pipefail
cd "$(dirname "$0")/.."
python=${PYTHON:-.venv/bin/python}
command -v "$python" >/dev/null || python=python3
export PYTHONPATH="$PWD${PYTHONPATH:+:$PYTHONPATH}"
# A later start need not compile again, as long as the machine is the same.
export JAX_COMPILATION_CACHE_DIR=${JAX_COMPILATION_CACHE_DIR:-$PWD/build/programs}
exec "$python" bench/accelerator_run.py "$@"
