"""A small sweep, and what it leaves where nothing disturbs it."""

import pytest
import tiny_world
from computing import compute


@pytest.fixture(scope="session")
def sweep():
    return list(tiny_world.students())


@pytest.fixture(scope="session")
def undisturbed(sweep, tmp_path_factory):
    return compute(sweep, tmp_path_factory.mktemp("undisturbed"))
