"""Writes the tables of all measured benchmarks into docs/benchmarks.md, between the markers of each.

A benchmark NAME has its JSON in bench/results/NAME.json and its place between `<!-- begin NAME -->` and
`<!-- end NAME -->`. What has not been measured says so. What is worked out rather than measured (sizing.py,
fleet_on_paper.py) has a place on one of the pages too, and no JSON.
"""

import argparse
import importlib
import json
import pathlib
import re
from collections.abc import Sequence

import measuring

MEASURED = (
    *(
        "training",
        "decoding",
        "sharing",
        "overhead",
        "students",
        "scaling",
        "ray_overhead",
        "planning",
        "bookkeeping",
        "digits",
        "accelerator",
    ),
    *("chat_training", "chat_generation", "chat_accelerator"),
)
# Page → whose tables it has.
PAGES = {"benchmarks.md": (*MEASURED, "fleet_on_paper"), "models.md": ("sizing",)}


def section(name: str, results: pathlib.Path) -> str:
    """The tables of one benchmark as Markdown."""
    if name not in MEASURED:
        return "\n\n".join(table.markdown() for table in importlib.import_module(name).tables())
    path = results / f"{name}.json"
    if not path.is_file():
        return "*Not measured yet.*"
    data = json.loads(path.read_text())
    tables = importlib.import_module(name).tables(data)
    return "\n\n".join([*(table.markdown() for table in tables), f"*{measuring.circumstances(data)}*"])


def filled(text: str, names: Sequence[str], results: pathlib.Path) -> str:
    """`text` with the marked places of `names` filled anew.

    Raises:
      SystemExit: a benchmark has no place, or more than one.
    """
    for name in names:
        place = re.compile(rf"(<!-- begin {name} -->\n).*?(<!-- end {name} -->)", re.DOTALL)
        if len(place.findall(text)) != 1:
            raise SystemExit(f"expected one <!-- begin {name} --> … <!-- end {name} -->")
        text = place.sub(lambda match, name=name: f"{match[1]}\n{section(name, results)}\n\n{match[2]}", text)
    return text


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--results", type=pathlib.Path, default=measuring.RESULTS, help="the folder of JSON files")
    parser.add_argument("--docs", type=pathlib.Path, default=measuring.ROOT / "docs", help="the folder of pages")
    options = parser.parse_args()
    for page, names in PAGES.items():
        path = options.docs / page
        path.write_text(filled(path.read_text(), names, options.results))


if __name__ == "__main__":
    main()
