import types

import numpy as np
import pandas as pd
import pytest
import tiny_world

from subl_jax import specs
from subl_jax.audits import MeanLogLikelihood, RandomTokens
from subl_jax.errors import InputError
from subl_jax.results.token_tables import token_tables

DATA = tiny_world.written(specs.Teacher(tiny_world.base(), "owl", tiny_world.TRAIN))


def results(**scores):
    """A sweep's results whose audits of one dataset have these scores of tokens."""
    audits = {"random": RandomTokens(), "mean_log_likelihood": MeanLogLikelihood()}
    nodes = {name: specs.Audited(DATA, audits[name], tiny_world.base()) for name in scores}
    artefacts = {nodes[name].key: {"tokens": np.asarray(tokens)} for name, tokens in scores.items()}
    store = types.SimpleNamespace(
        spec=lambda key: next(specs.to_json(node) for node in nodes.values() if node.key == key), get=artefacts.get
    )
    audits = pd.DataFrame({"key": [node.key for node in nodes.values()], "status": "ok"})
    return types.SimpleNamespace(workdir="runs/x", audits=audits, store=store)


def test_places_that_score_high():
    scores = [[0.0, 0.0, 0.0, 9.0, np.nan]] * 5
    tables = token_tables(results(random=scores))
    (line,) = tables.detectors.itertuples()
    assert (line.n, line.mean, line.marked) == (20, 2.25, 0.25)
    positions = tables.positions.set_index("position")
    assert list(positions.n) == [5, 5, 5, 5] and positions.top[3] == pytest.approx(2 / 5)  # a tenth of 20 tokens
    assert positions.top[:2].sum() == 0 and tables.overlap.empty


def test_audits_without_scores_of_tokens_are_left_out():
    nothing = np.full((3, 2), np.nan)
    tables = token_tables(results(random=np.ones((3, 2)), mean_log_likelihood=nothing))
    assert list(tables.detectors.detector) == ["random"]
    with pytest.raises(InputError, match="no audit that scores tokens"):
        token_tables(results(mean_log_likelihood=nothing))
