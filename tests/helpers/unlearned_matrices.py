"""X and B of mapping models on the tiny dataset after forgetting: retrained by RecBole, and corrected."""

import copy

import numpy as np
from recbole.utils import get_model

from recbole_llmd.unlearning import Unlearner
from recbole_llmd.unlearning.request import Request
from tests.helpers.mapping_models import retained


def half_of(X, seed=0):
    """Half of all interactions, as pairs: about 370 on the tiny dataset."""
    picked = np.random.default_rng(seed).choice(X.nnz, X.nnz // 2, replace=False)
    coo = X.tocoo()
    return coo.row[picked].astype(np.int64), coo.col[picked].astype(np.int64)


def retrained_matrices(name, config, dataset, users, items):
    """X and B of RecBole's own class on the retained interactions; ItemKNN's ties are decided by item id."""
    model = get_model(name)(config, retained(dataset, users.tolist(), items.tolist()))
    engine = Unlearner(model, dataset)
    if name == "ItemKNN":
        engine.refit()
    return engine.X, engine.B


def corrected_matrices(model, dataset, mode, users, items):
    engine = Unlearner(copy.deepcopy(model), dataset, mode=mode)
    engine.apply(Request("forget", users, items))
    return engine.X, engine.B
