"""python -m subl_jax COMMAND …, or subl-jax COMMAND …

COMMAND --help says what it takes. Exit status: the command's; 2 without one.
"""

import ast
import importlib
import importlib.util
import os
import pathlib
import sys
from collections.abc import Sequence

# Command → its module, with `main(argv) -> int` and its help as __doc__. Imported when it is called.
COMMANDS = {
    "sweep": "subl_jax.app.cli",
    "export": "subl_jax.app.export",
    "dashboard": "subl_jax.app.dashboard",
    "show": "subl_jax.app.show",
    "tokens": "subl_jax.app.tokens",
    "predict": "subl_jax.app.predict",
    "audit": "subl_jax.app.audit",
}


def main(argv: Sequence[str] | None = None) -> int:
    """Runs a command line (without the program's name) and returns its exit status."""
    name, *rest = [*(sys.argv[1:] if argv is None else argv), ""]
    if name in ("", "-h", "--help"):
        print(f"{__doc__}\n" + "\n".join(f"  {each:<10} {_purpose(module)}" for each, module in COMMANDS.items()))
        return 0 if name else 2
    if name not in COMMANDS:
        print(f"error: {name!r}: no such command; one of {', '.join(COMMANDS)}", file=sys.stderr)
        return 2
    module = importlib.import_module(COMMANDS[name])
    arguments = rest[:-1]
    if {"-h", "--help"} & set(arguments):
        print(module.__doc__)
        return 0
    return module.main(arguments)


def _purpose(module: str) -> str:
    """The first line of a module's help, without the time that importing it takes."""
    path = pathlib.Path(__file__).parent.joinpath(*module.split(".")[1:]).with_suffix(".py")
    text = (ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or "") if path.is_file() else ""
    return next(iter(text.splitlines()), "")


if __name__ == "__main__":
    # With -m the folder one is in comes first: a sweep file there that is called like a package would hide it.
    here = os.getcwd()
    sys.path[:] = [each for each in sys.path if each not in ("", here)] + [here]
    sys.exit(main())
