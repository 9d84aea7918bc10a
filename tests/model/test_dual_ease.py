"""DualEASE as a model of RecBole: its scores and results are those of RecBole's own EASE."""

import numpy as np
import pytest
import torch
from recbole.config import Config
from recbole.data.interaction import Interaction

from recbole_llmd.unlearning.mapping.dual_matrix import DualMatrix
from tests.helpers.mapping_models import evaluate


@pytest.mark.parametrize("weight", [1.0, 250.0])
def test_scores_and_results_are_those_of_recboles_ease(trained, weight):
    config, (_, _, test), model = trained("DualEASE", reg_weight=weight)
    their_config, _, theirs = trained("EASE", reg_weight=weight)
    assert type(model.item_similarity) is DualMatrix
    assert (model.interaction_matrix != theirs.interaction_matrix).nnz == 0
    users = Interaction({"user_id": torch.arange(1, model.n_users)})
    scores = model.full_sort_predict(users).reshape(-1, model.n_items)
    expected = theirs.full_sort_predict(users).reshape(-1, model.n_items)
    np.testing.assert_allclose(scores, expected, atol=1e-5)
    X = theirs.interaction_matrix.toarray().astype(np.float64)
    P = np.linalg.inv(X.T @ X + weight * np.eye(model.n_items))
    np.testing.assert_allclose(scores, X[1:] @ (np.eye(model.n_items) - P / np.diag(P)), atol=1e-5)
    rng = np.random.default_rng(0)
    pairs = {
        "user_id": torch.from_numpy(rng.integers(1, model.n_users, 500)),
        "item_id": torch.from_numpy(rng.integers(1, model.n_items, 500)),
    }
    np.testing.assert_allclose(model.predict(Interaction(pairs)), theirs.predict(Interaction(pairs)), atol=1e-5)
    mine, expected = evaluate(config, model, test), evaluate(their_config, theirs, test)
    assert mine.keys() == expected.keys() and all(abs(mine[key] - expected[key]) < 1e-6 for key in mine)


def test_its_settings_are_those_of_recboles_ease():
    own, theirs = (Config(model=name, dataset="tiny") for name in ("DualEASE", "EASE"))
    assert own["reg_weight"] == theirs["reg_weight"] == 250.0
