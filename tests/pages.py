"""The pages that people read: their blocks of code, the commands in these, and their tables."""

import pathlib
import re
import shlex
from collections.abc import Iterator
from typing import NamedTuple

ROOT = pathlib.Path(__file__).resolve().parents[1]
PAGES = [ROOT / "README.md", *sorted(ROOT.glob("docs/**/*.md")), *sorted(ROOT.glob("launch/*/README.md"))]
_FENCE = re.compile(r"^( *)```(\w*)\n(.*?)^\1```$", re.MULTILINE | re.DOTALL)


class Block(NamedTuple):
    """page: relative to the repository; line: of its first line of code, from 1."""

    page: str
    line: int
    language: str
    text: str

    def __str__(self) -> str:
        return f"{self.page}:{self.line}"


def blocks(language: str) -> list[Block]:
    return [block for page in PAGES for block in _of(page) if block.language == language]


def _of(page: pathlib.Path) -> Iterator[Block]:
    text = page.read_text(encoding="utf-8")
    for match in _FENCE.finditer(text):
        code = re.sub(f"^{match[1]}", "", match[3], flags=re.MULTILINE)
        yield Block(str(page.relative_to(ROOT)), text[: match.start(3)].count("\n") + 1, match[2], code)


def prose(page: pathlib.Path) -> str:
    """A page without its blocks."""
    return _FENCE.sub("", page.read_text(encoding="utf-8"))


def commands(text: str) -> Iterator[list[str]]:
    """The simple commands of a block of shell, as words; those inside a quoted word, too."""
    for line in text.replace("\\\n", " ").splitlines():
        lexer = shlex.shlex(re.sub(r"\d>&\d", "", line), posix=True, punctuation_chars=";&|")
        lexer.whitespace_split, lexer.commenters = True, "#"
        command: list[str] = []
        for word in [*lexer, ";"]:
            if not set(word) <= set(";&|"):
                command.append(word)
                continue
            yield from filter(None, [command])
            yield from (inner for quoted in command if " launch/" in quoted for inner in commands(quoted))
            command = []


def rows(page: str, header: str) -> list[list[str]]:
    """The rows of the table of a page whose header begins so, as cells."""
    lines = iter((ROOT / page).read_text(encoding="utf-8").splitlines())
    found = []
    for line in lines:
        if line.startswith(header):
            next(lines)
            for row in lines:
                if not row.startswith("|"):
                    return found
                found.append([cell.strip() for cell in re.split(r"(?<!\\)\|", row)[1:-1]])
    raise AssertionError(f"{page}: no table begins with {header}")


def names(cell: str) -> list[str]:
    """What stands in a cell as code."""
    return re.findall(r"`([^`]+)`", cell)


_NAMED = re.compile(r"\"\"\"(\w+)\.py: ")  # a whole sweep file begins with a docstring that names it


def file_name(block: Block) -> str | None:
    """Of a block that is a whole sweep file, what it is called."""
    found = _NAMED.match(block.text)
    return found[1] if found else None


FILES = {name: block for block in blocks("python") if (name := file_name(block))}
