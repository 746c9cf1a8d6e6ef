"""Writes the tables of all measured benchmarks into docs/benchmarks.md, between the markers of each.

A benchmark NAME has its JSON in bench/results/NAME.json and its place between `<!-- begin NAME -->` and
`<!-- end NAME -->`. What has not been measured says so.
"""

import argparse
import importlib
import json
import pathlib
import re

import measuring

NAMES = ("training", "decoding", "sharing", "overhead", "students", "scaling", "planning", "digits", "accelerator")


def section(name: str, results: pathlib.Path) -> str:
    """The tables of one benchmark as Markdown."""
    path = results / f"{name}.json"
    if not path.is_file():
        return "*Not measured yet.*"
    data = json.loads(path.read_text())
    tables = importlib.import_module(name).tables(data)
    return "\n\n".join([*(table.markdown() for table in tables), f"*{measuring.circumstances(data)}*"])


def filled(text: str, results: pathlib.Path) -> str:
    """`text` with every marked place filled anew.

    Raises:
      SystemExit: a benchmark has no place, or more than one.
    """
    for name in NAMES:
        place = re.compile(rf"(<!-- begin {name} -->\n).*?(<!-- end {name} -->)", re.DOTALL)
        if len(place.findall(text)) != 1:
            raise SystemExit(f"expected one <!-- begin {name} --> … <!-- end {name} -->")
        text = place.sub(lambda match, name=name: f"{match[1]}\n{section(name, results)}\n\n{match[2]}", text)
    return text


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--results", type=pathlib.Path, default=measuring.RESULTS, help="the folder of JSON files")
    parser.add_argument("--docs", type=pathlib.Path, default=measuring.ROOT / "docs" / "benchmarks.md")
    options = parser.parse_args()
    options.docs.write_text(filled(options.docs.read_text(), options.results))


if __name__ == "__main__":
    main()
