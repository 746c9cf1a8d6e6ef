"""Chat templates, rendered safely and the same on every day.

A checkpoint's template is code from elsewhere: it runs in jinja's sandbox, as in `transformers`, and with bounds on how
often its loops and macros turn and on how much it writes. It sees what it sees in `transformers`, except for the date:
`strftime_now` gives `DATE`, because prompts that change overnight would split one experiment in two.
"""

import datetime
import json
from typing import Any, NoReturn

import jinja2
import jinja2.ext
import jinja2.nodes
import jinja2.sandbox

from subl_jax.errors import InputError

DATE = datetime.datetime(2024, 7, 26)  # what the templates of Llama 3 say where they are told no date

MOST_TURNS = 100_000
MOST_CHARACTERS = 10_000_000
_HIGHEST_POWER = 64


class Template:
    """A compiled template; `where` (a file) opens the messages about it.

    Raises:
      InputError: the source is not a template.
    """

    def __init__(self, source: str, where: str) -> None:
        self._where = where
        self._sandbox = _Sandbox()
        try:
            tree = _counted(self._sandbox.parse(source))
            self._template = jinja2.Template.from_code(
                self._sandbox, self._sandbox.compile(tree), self._sandbox.make_globals(None)
            )
        except (jinja2.TemplateError, RecursionError) as error:
            raise InputError(f"{where}: the chat template cannot be read: {_line(error)}") from None

    def render(self, **variables: Any) -> str:
        """The text for the given variables (`messages`, `add_generation_prompt`, `bos_token`, …).

        Raises:
          InputError: the template raises an error, or goes beyond its bounds.
        """
        self._sandbox.turns = 0
        pieces, size = [], 0
        # Whatever goes wrong in there is the template's fault, not ours.
        try:
            for piece in self._template.generate(**variables):
                pieces.append(piece)
                size += len(piece)
                if size > MOST_CHARACTERS:
                    raise jinja2.TemplateError(f"it writes more than {MOST_CHARACTERS:,} characters")
        except Exception as error:
            raise InputError(f"{self._where}: the chat template failed: {_line(error)}") from None
        return "".join(pieces)


class _Generation(jinja2.ext.Extension):
    """`{% generation %}` marks what an assistant wrote; it adds nothing to the text."""

    tags = {"generation"}

    def parse(self, parser: Any) -> list[jinja2.nodes.Node]:
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


class _Sandbox(jinja2.sandbox.ImmutableSandboxedEnvironment):
    intercepted_binops = frozenset(("*", "**"))

    def __init__(self) -> None:
        super().__init__(trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols", _Generation])
        self.filters["tojson"] = _to_json
        self.globals.update(raise_exception=_raise, strftime_now=DATE.strftime)
        self.turns = 0

    def turn(self) -> None:
        self.turns += 1
        if self.turns > MOST_TURNS:
            raise jinja2.TemplateError(f"its loops turn more than {MOST_TURNS:,} times")

    def call_binop(self, context: Any, operator: str, left: Any, right: Any) -> Any:
        if operator == "**" and abs(right) > _HIGHEST_POWER:
            raise jinja2.TemplateError(f"a power above {_HIGHEST_POWER}")
        for sequence, times in ((left, right), (right, left)):
            if operator == "*" and hasattr(sequence, "__len__") and len(sequence) * times > MOST_CHARACTERS:
                raise jinja2.TemplateError(f"it repeats a text beyond {MOST_CHARACTERS:,} characters")
        return super().call_binop(context, operator, left, right)


def _counted(tree: jinja2.nodes.Template) -> jinja2.nodes.Template:
    """The tree with a call of `turn` at the head of every loop and macro."""
    for node in tree.find_all((jinja2.nodes.For, jinja2.nodes.Macro, jinja2.nodes.CallBlock)):
        call = jinja2.nodes.Call(jinja2.nodes.EnvironmentAttribute("turn"), [], [], None, None)
        node.body.insert(0, jinja2.nodes.ExprStmt(call).set_lineno(node.lineno))
    return tree


def _raise(message: str) -> NoReturn:
    raise jinja2.TemplateError(message)


def _to_json(value: Any, ensure_ascii: bool = False, indent: int | None = None, **options: Any) -> str:
    """Jinja's own escapes for HTML, which no chat model has seen."""
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, **options)


def _line(error: Exception) -> str:
    return " ".join(str(error).split())[:300] or type(error).__name__
