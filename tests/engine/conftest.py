"""Engines of different tests share programs, as one engine does within a sweep."""

import dataclasses
import functools
import json

import pytest
import tiny_world
from computing import compute

from subl_jax import specs
from subl_jax.engine import lanes


@pytest.fixture(scope="session")
def shared_programs():
    """`lanes.compile_program`, once a session for equal programs."""
    programs, compile_program = {}, lanes.compile_program

    @functools.wraps(compile_program)
    def shared(stage, spec, layout, inputs, matmul):
        form = json.dumps([specs.static_form(spec), dataclasses.astuple(layout), str(inputs), matmul])
        if form not in programs:
            programs[form] = compile_program(stage, spec, layout, inputs, matmul)
        return programs[form]

    return shared


@pytest.fixture(scope="module")
def compiled_once(shared_programs):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(lanes, "compile_program", shared_programs)
        yield


@pytest.fixture(scope="module")
def sweep():
    return list(tiny_world.students())


@pytest.fixture(scope="module")
def undisturbed(sweep, tmp_path_factory, compiled_once):
    return compute(sweep, tmp_path_factory.mktemp("undisturbed"))
