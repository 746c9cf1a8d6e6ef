"""Which cases of a test run in `make test`, and which with the slow ones only."""

import pytest


def few(cases, *quick):
    """Parameters of a test: all `cases`, of which those that are not `quick` are slow."""
    cases = list(cases)
    assert all(case in cases for case in quick), "a case that is not among them"
    slow = [case if isinstance(case, tuple) else (case,) for case in cases]
    return [
        case if case in quick else pytest.param(*values, marks=pytest.mark.slow)
        for case, values in zip(cases, slow, strict=True)
    ]
