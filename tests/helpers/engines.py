"""Engines of the tests, and whether one is as it was."""

import copy

import numpy as np

from recbole_llmd.unlearning import Unlearner
from tests.helpers.mapping_models import dense


def engine_of(trained, name, **settings):
    _, loaders, model = trained(name)
    return Unlearner(model, loaders[0].dataset, **{"keep_pairs": True, **settings})


def snapshot(engine):
    return engine.X.copy(), copy.deepcopy(engine.B), engine.model.n_users, engine.model.n_items


def assert_as_it_was(engine, before, exactly=True):
    X, B, n_users, n_items = before
    assert (engine.model.n_users, engine.model.n_items) == (n_users, n_items)
    assert engine.X.shape == X.shape and (engine.X != X).nnz == 0
    if exactly:
        assert np.array_equal(dense(engine.B), dense(B))
    else:
        assert np.abs(dense(engine.B) - dense(B)).max() < 1e-6
