"""SparseEASE as a model of RecBole: its scores, and RecBole's own EASE where every item is everybody's neighbour."""

import numpy as np
import pytest
import torch
from recbole.config import Config
from recbole.data.interaction import Interaction

from recbole_llmd.errors import SettingsError
from tests.helpers.mapping_models import evaluate


def test_with_all_items_as_neighbours_scores_and_results_are_those_of_recboles_ease(trained):
    config, (_, _, test), model = trained("SparseEASE", k=1000)
    their_config, _, theirs = trained("EASE")
    assert (model.interaction_matrix != theirs.interaction_matrix).nnz == 0
    users = Interaction({"user_id": torch.arange(1, model.n_users)})
    expected = theirs.full_sort_predict(users).flatten()
    np.testing.assert_allclose(model.full_sort_predict(users), expected, atol=1e-5)
    mine, expected = evaluate(config, model, test), evaluate(their_config, theirs, test)
    assert mine.keys() == expected.keys() and all(abs(mine[key] - expected[key]) < 1e-6 for key in mine)


def test_it_holds_no_more_than_k_weights_an_item_and_scores_by_them(trained):
    _, _, model = trained("SparseEASE", k=5)
    lengths = np.diff(model.item_similarity.tocsc().indptr)
    assert lengths.max() == 5 and model.item_similarity.dtype == np.float32
    expected = model.interaction_matrix.toarray() @ model.item_similarity.toarray()
    users = torch.arange(1, model.n_users)
    scores = model.full_sort_predict(Interaction({"user_id": users})).reshape(-1, model.n_items)
    np.testing.assert_allclose(scores, expected[1:], atol=1e-6)
    rng = np.random.default_rng(0)
    owners, items = rng.integers(1, model.n_users, 500), rng.integers(1, model.n_items, 500)
    pairs = Interaction({"user_id": torch.from_numpy(owners), "item_id": torch.from_numpy(items)})
    np.testing.assert_allclose(model.predict(pairs), expected[owners, items], atol=1e-6)


def test_its_penalty_is_that_of_recboles_ease_and_bad_settings_are_refused(trained):
    own, theirs = (Config(model=name, dataset="tiny") for name in ("SparseEASE", "EASE"))
    assert own["reg_weight"] == theirs["reg_weight"] and own["k"] == 100
    with pytest.raises(SettingsError, match="k = 0: must be a whole number of at least 1"):
        trained("SparseEASE", k=0)
