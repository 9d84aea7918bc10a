"""Many requests one after the other end where a fit from scratch does."""

import numpy as np
import pytest
import scipy.sparse as sp
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from recbole_llmd.unlearning import Unlearner
from recbole_llmd.unlearning.mapping import asymknn, ease, itemknn
from tests.helpers.engines import engine_of
from tests.helpers.mapping_models import dense


@pytest.mark.parametrize("dtype, allowed", [("float32", 1e-4), ("float64", 1e-9)])
def test_a_thousand_sequential_requests_do_not_drift(trained, dtype, allowed):
    engine = engine_of(trained, "EASE", hashes=False)
    engine.refit(dtype)
    rng, gone = np.random.default_rng(0), []
    for _ in range(1000):
        if gone and rng.random() < 0.5:
            engine.learn(*gone.pop(), ids="internal")
        else:
            coo = engine.X.tocoo()
            pair = rng.integers(len(coo.row))
            gone.append(([int(coo.row[pair])], [int(coo.col[pair])]))
            receipt = engine.forget(*gone[-1], ids="internal")
            assert receipt.method == "low-rank update" and receipt.residual < receipt.tolerance
    expected = ease.fit(engine.X, engine.params, np.float64)
    assert np.linalg.norm(engine.B - expected) <= allowed * np.linalg.norm(expected)


class ItemKNN:
    """What the engine needs of RecBole's model."""

    USER_ID, ITEM_ID, n_users, n_items = "user_id", "item_id", 25, 14

    def __init__(self, X, params):
        self.interaction_matrix = X
        self.w = itemknn.fit(X, params)


class AsymKNN(ItemKNN):
    def __init__(self, X, params):
        self.interaction_matrix = X
        self.w = asymknn.fit(X, params)


class EASE(ItemKNN):
    def __init__(self, X, params):
        self.interaction_matrix = X
        self.item_similarity = ease.fit(X, params, np.float64)


@pytest.mark.parametrize(
    "model_class, params",
    [
        (EASE, {"reg_weight": 2.0}),
        *(
            (model_class, {**params, "k": 3, "knn_method": method})
            for model_class, params in ((ItemKNN, {"shrink": None}), (AsymKNN, {"alpha": 0.4, "beta": 0.5, "q": 1}))
            for method in ("item", "user")
        ),
    ],
)
@given(
    st.integers(0, 10**6),
    st.lists(
        st.tuples(st.sampled_from(["pairs", "users", "items", "learn", "grow"]), st.integers(0, 10**6)), max_size=8
    ),
)
@settings(max_examples=40, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
def test_any_sequence_of_requests_ends_where_a_fit_from_scratch_does(model_class, params, seed, requests):
    rng = np.random.default_rng(seed)
    X = rng.integers(0, 2, (25, 14)) * rng.integers(1, 3, (25, 14)) * (rng.random((25, 14)) < 0.6)
    X[0], X[:, 0] = 0, 0
    model = model_class(sp.csr_matrix(X.astype(np.float32)), params)
    engine = Unlearner(model, params)
    mine = X.astype(np.float64)  # what X should be, kept by other means
    for kind, draw in requests:
        rng = np.random.default_rng(draw)
        if kind == "users":
            user = int(rng.integers(1, len(mine)))
            engine.forget_users(user, ids="internal", strict=False)
            mine[user] = 0
        elif kind == "items":
            item = int(rng.integers(1, mine.shape[1]))
            engine.forget_items(item, ids="internal", strict=False)
            mine[:, item] = 0
        elif kind == "grow":
            engine.learn([len(mine), 1], [mine.shape[1], mine.shape[1]], [2, 1], ids="internal", grow=True)
            mine = np.pad(mine, ((0, 1), (0, 1)))
            mine[-1, -1], mine[1, -1] = 2, 1
        else:
            rows, columns = np.nonzero((mine > 0) == (kind == "pairs"))
            cells = [(u, i) for u, i in zip(rows.tolist(), columns.tolist()) if u and i]
            cells = [cells[n] for n in rng.integers(len(cells), size=4)] if cells else []
            method = engine.forget if kind == "pairs" else engine.learn
            method([u for u, _ in cells], [i for _, i in cells], ids="internal")
            for cell in cells:
                mine[cell] = 0 if kind == "pairs" else 1
    assert np.array_equal(engine.X.toarray(), mine)
    assert (model.n_users, model.n_items) == mine.shape
    expected = dense(engine.mapping.fit(sp.csr_matrix(mine), engine.params, np.float64))
    assert np.abs(dense(engine.B) - expected).max() < (1e-9 if model_class is EASE else 1e-30)
