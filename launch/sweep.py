"""Runs a sweep: `python launch/sweep.py --config sweeps/traits.py`. `--help` says what else it takes."""

import sys

try:
    from subl_jax.app import cli
except ModuleNotFoundError as error:
    sys.exit(f"error: {error}; install the package first: pip install -e . (in the repository's folder)")

if __name__ == "__main__":
    sys.exit(cli.main(sys.argv[1:]))
