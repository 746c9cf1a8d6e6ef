"""Reaching a Ray cluster, where it cannot be reached."""

import sys
import types

import pytest

from subl_jax.errors import InputError
from subl_jax.fleet import Fleet


def test_versions_that_differ_are_named(monkeypatch):
    def init(**_):
        raise RuntimeError(
            "Version mismatch: The cluster was started with:\n    Ray: 2.60\nThis process has:\n    Ray: 2.9"
        )

    monkeypatch.setitem(sys.modules, "ray", types.SimpleNamespace(is_initialized=lambda: False, init=init))
    with pytest.raises(InputError, match="Ray: 2.60 This process has: Ray: 2.9$"), Fleet().connected():
        pass
