"""Makes cheap what sweeps do again and again, and what they do beside their science.

Engines of different tests share programs, as one engine does within a sweep, and plans share what was tried before.
The ceiling of the machine is that of a small product. Drawing takes seconds a sweep, and hardly any test looks at
pictures: the fixture `pictures` draws them. No test pulls the plug, so files need not reach the disk. Of jax: programs
are lowered in one context of MLIR, where making one takes longer than most of what is lowered; and the folder of
compiled programs is not searched through for what is old.
"""

import base64
import dataclasses
import functools
import json
import os
import threading

from jax._src import config, lru_cache
from jax._src.interpreters import mlir

from subl_jax import specs
from subl_jax.engine import lanes, plan
from subl_jax.results import report
from subl_jax.runtime import ceiling
from subl_jax.storage.atomic import write_bytes_atomic

PROGRAMS = {}  # what `lanes.compile_program` was asked for → the program
DRAWN = report._saved
_PIXEL = base64.b64decode(
    "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwADhgGAWjR9awAAAABJRU5ErkJggg=="
)


def _pixel(workdir, figure, tables, warn, suffix=""):
    """A pixel in place of a figure."""
    file = f"{figure.name}{suffix}.png"
    write_bytes_atomic(workdir / "figures" / file, _PIXEL)
    return report._Shown(file, "", base64.b64encode(_PIXEL).decode())


def _shared(compile_program):
    @functools.wraps(compile_program)
    def shared(stage, spec, layout, inputs, matmul="auto"):
        form = json.dumps([specs.static_form(spec), dataclasses.astuple(layout), str(inputs), matmul])
        asked = form, _types(spec), stage, config.trace_context()
        if asked not in PROGRAMS:
            PROGRAMS[asked] = compile_program(stage, spec, layout, inputs, matmul)
        return PROGRAMS[asked]

    return shared


def _once(check):
    """What could be computed before can be computed again."""
    passed = set()

    @functools.wraps(check)
    def once(node):
        asked = plan._form(node, {}), _types(node), config.trace_context()
        if asked not in passed:
            check(node)
            passed.add(asked)

    return once


def _one_context(make):
    own = threading.local()

    @functools.wraps(make)
    def context():
        if not hasattr(own, "context"):
            own.context = make()
        return own.context

    return context


def _types(spec):
    """The classes of a spec and of all in it, of which files may have several of one name."""
    values = [getattr(spec, field.name) for field in dataclasses.fields(spec)]
    flat = [each for value in values for each in (value if isinstance(value, tuple) else (value,))]
    return (type(spec), *(_types(each) for each in flat if isinstance(each, specs.Spec)))


@functools.cache  # once a process
def install():
    lanes.compile_program = _shared(lanes.compile_program)
    plan.check = _once(plan.check)
    report._saved = _pixel
    ceiling._SIZE_ON_CPU = 64
    os.fsync = lambda descriptor: None
    mlir.make_ir_context = _one_context(mlir.make_ir_context)
    lru_cache.LRUCache._evict_if_needed = lambda self, additional_size=0: None
