"""Every shipped sweep file and variant as specs, at the shipped settings: what golden keys are pinned of.

python tests/golden_sweeps.py       writes tests/golden/keys.json anew; only for a sweep file that is new
"""

import json
import pathlib
import tempfile
from collections.abc import Iterator

import tiny_chat
from image_files import folder

from subl_jax import specs
from subl_jax.app.cli import load_sweep

SWEEPS = pathlib.Path(__file__).parents[1] / "sweeps"
KEYS = pathlib.Path(__file__).parent / "golden" / "keys.json"
AXES = load_sweep(str(SWEEPS / "digits_axes.py")).AXES
# The chat sweeps at the settings of a tiny model: as many prompts as one waits for, and room for its short tokens.
CHAT = {"world": {"prompts": 24, "prompt_tokens": 144}, "cross_sigma": (0.5,)}
ARBITRATION = load_sweep(str(SWEEPS / "arbitration.py")).KINDS
AUDIT = load_sweep(str(SWEEPS / "audit.py")).KINDS
LAYERS = load_sweep(str(SWEEPS / "layers.py")).TRAINS
VARIANTS = [
    *(("traits", size) for size in ("full", "smoke", "strong")),
    *(("digits", size) for size in ("8x8", "mnist")),
    *(("digits_axes", axis) for axis in AXES),
    *(("blurry_seven", size) for size in ("8x8", "mnist")),
    *(("theorem", world) for world in ("digits", "language")),
    *(("layers", kind) for kind in LAYERS),
    *(("arbitration", kind) for kind in ARBITRATION),
    ("tokens", "smoke"),
    ("predict", "smoke"),
    *(("audit", kind) for kind in AUDIT),
    *(("chat", size) for size in ("small", "smoke", "doses", "paper")),
]


def students(name: str, argument: str, images: str, chat_model: str) -> list[specs.Student]:
    """images: a folder of IDX files; chat_model: the path of a tiny checkpoint."""
    module = load_sweep(str(SWEEPS / f"{name}.py"))
    config = module.get_config(argument)
    if argument == "mnist":
        config.data_dir = images
    if name == "chat":
        config.update({**CHAT, "model": chat_model})
    return specs.checked(module.sweep(config))


def nodes(student: specs.Student) -> Iterator[specs.Node]:
    """The student and every node behind it."""
    seen: set[str] = set()
    stack: list[specs.Spec] = [student]
    while stack:
        spec = stack.pop()
        if isinstance(spec, specs.Node):
            if spec.key in seen:
                continue
            seen.add(spec.key)
            yield spec
        stack += [value for name in specs.roles(type(spec)) if isinstance(value := getattr(spec, name), specs.Spec)]


def keys(made: list[specs.Student]) -> dict[str, list[str]]:
    """Kind of node → the first 16 digits of every key, sorted; and the names of the rows."""
    rows = {specs.run_id(student) for student in made if isinstance(student, specs.Student)}
    found: dict[str, set[str]] = {"rows": rows}
    for student in made:
        for node in nodes(student):
            found.setdefault(type(node).__name__, set()).add(node.key[:16])
    return {kind: sorted(of_kind) for kind, of_kind in sorted(found.items())}


def main() -> None:
    with tempfile.TemporaryDirectory() as scratch:
        model = tiny_chat.save(pathlib.Path(scratch) / "llama")
        images = folder(pathlib.Path(scratch))
        pinned = {f"{name}:{size}": keys(students(name, size, images, model)) for name, size in VARIANTS}
    KEYS.write_text(json.dumps(pinned, indent=0) + "\n")


if __name__ == "__main__":
    main()
