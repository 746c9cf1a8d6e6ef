"""The house stands as docs/architecture.md says: imports point one way, files and classes are small."""

import ast
import pathlib

import pytest

HOUSE = pathlib.Path(__file__).parent.parent / "subl_jax"

# Each row may import from its own and from those below it.
LAYERS = (
    ("app",),
    ("results", "tracking", "fleet"),
    ("engine",),
    ("stages",),
    ("worlds", "traits", "channels", "objectives", "transforms", "probes", "audits"),
    ("models", "pretrained"),
    ("training", "statistics"),
    ("specs",),
    ("runtime", "storage"),
    ("errors",),
)
HEIGHT = {room: -i for i, rooms in enumerate(LAYERS) for room in rooms}

# Known, and to be emptied: (file, room that it must not import) → why.
UPWARD: dict[tuple[str, str], str] = {}
# File → lines that it may have for now.
LONG: dict[str, int] = {}
# Class → methods that it may have: a world has one for each member of the contract, most of them a line.
WIDE: dict[str, int] = {"World": 27, "Digits": 29, "ToyLanguage": 40, "Pretrained": 44}
# file → private members of others that it may use for now.
PRIVATE: dict[str, set[str]] = {
    # W&B's client has no public way to stop it, nor to be told that it may not ask for a login.
    "tracking/wandb_client.py": {"_singleton", "_connection", "_process", "_proc", "_cleanup", "_finalizer"},
}

_PUBLIC = {"_replace", "_asdict", "_fields", "_make", "_exit"}  # of named tuples, and `os._exit`


def files():
    return sorted(path for path in HOUSE.rglob("*.py") if "moved" not in path.parts)


def name_of(path):
    return str(path.relative_to(HOUSE))


def imported(path):
    """The rooms that a file imports from, wherever in it."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            names = [node.module or ""]
            names += [f"{node.module}.{alias.name}" for alias in node.names] if node.module == "subl_jax" else []
        else:
            continue
        for name in names:
            parts = name.split(".")
            if parts[0] == "subl_jax" and len(parts) > 1 and parts[1] in HEIGHT:
                yield parts[1]


@pytest.mark.parametrize("path", [path for path in files() if path.parent != HOUSE], ids=name_of)
def test_imports_point_downwards(path):
    room = path.relative_to(HOUSE).parts[0]
    assert room in HEIGHT, f"{room} has no place in LAYERS"
    up = {other for other in imported(path) if HEIGHT[other] > HEIGHT[room]}
    assert up <= {other for file, other in UPWARD if file == name_of(path)}


def test_every_room_says_what_it_is_for():
    rooms = {path.parent for path in files()}
    without = [name_of(room) for room in rooms if not ast.get_docstring(ast.parse((room / "__init__.py").read_text()))]
    assert not without


def test_no_file_is_too_long_to_see():
    lengths = {name_of(path): len(path.read_text().splitlines()) for path in files()}
    assert {name: length for name, length in lengths.items() if length > LONG.get(name, 400)} == {}


def test_no_class_is_too_wide():
    widths = {
        (name_of(path), node.name): sum(isinstance(each, ast.FunctionDef) for each in node.body)
        for path in files()
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.ClassDef)
    }
    assert {place: width for place, width in widths.items() if width > WIDE.get(place[1], 20)} == {}


def foreign(path):
    """The private members that a file uses of anything but `self`, `cls` and the class around."""
    found = set()

    def walk(node, own):
        if isinstance(node, ast.ClassDef):
            own = {each.name for each in node.body if isinstance(each, ast.FunctionDef)} | {
                each.attr
                for each in ast.walk(node)
                if isinstance(each, ast.Attribute) and isinstance(each.value, ast.Name) and each.value.id == "self"
            }
        if isinstance(node, ast.Attribute) and node.attr.startswith("_") and not node.attr.startswith("__"):
            itself = isinstance(node.value, ast.Name) and node.value.id in ("self", "cls")
            if not itself and node.attr not in own | _PUBLIC:
                found.add(node.attr)
        for child in ast.iter_child_nodes(node):
            walk(child, own)

    walk(ast.parse(path.read_text()), set())
    return found


def test_no_private_member_is_used_by_another():
    used = {name_of(path): foreign(path) - PRIVATE.get(name_of(path), set()) for path in files()}
    assert {name: members for name, members in used.items() if members} == {}


def test_files_of_text_are_utf_8_whatever_the_locale():
    """`read_text`, `write_text` and `open` name an encoding, or are of bytes."""
    without = []
    for path in files():
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if not isinstance(node, ast.Call):
                continue
            method = isinstance(node.func, ast.Attribute)
            name = getattr(node.func, "attr", getattr(node.func, "id", ""))
            if name != "open" and not method or method and node.args and not isinstance(node.args[0], ast.Constant):
                continue  # of our own, or a client's or an image's `open`
            binary = ast.unparse(node.func) == "os.open"
            binary |= any(isinstance(each, ast.Constant) and "b" in str(each.value) for each in ast.walk(node))
            named = name and any(keyword.arg == "encoding" for keyword in node.keywords)
            if name in ("read_text", "write_text") and not named or name == "open" and not (named or binary):
                without.append(f"{name_of(path)}:{node.lineno}")
    assert without == []
