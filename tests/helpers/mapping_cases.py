"""What the tests of the mapping models' corrections share: settings, random interactions and changes of them."""

import numpy as np
import scipy.sparse as sp
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st

from recbole_llmd.unlearning.mapping import admm, asymknn, ease, itemknn, slim
from recbole_llmd.unlearning.mapping.correction import Change, FittedMapping

quick = settings(max_examples=30, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))

EASE = {"reg_weight": 3.0}
KNN = {"k": 4, "shrink": 0.0, "knn_method": "item"}
ASYM = {"k": 4, "alpha": 0.5, "beta": 0.7, "q": 2, "knn_method": "item"}
SLIM = {"alpha": 0.02, "l1_ratio": 0.3, "positive_only": True, "hide_item": True}
ADMM = {"lambda1": 0.7, "lambda2": 5.0, "alpha": 0.5, "positive_only": True, "center_columns": False}
NCE = {"beta": 1.0, "rank": 6, "reg_weight": 2.0}
FITTED = [
    (ease, EASE),
    (slim, SLIM),
    (slim, {**SLIM, "positive_only": False}),
    (slim, {**SLIM, "hide_item": False}),
    (admm, ADMM),
    (admm, {**ADMM, "positive_only": False, "center_columns": True}),
]
NEIGHBOURS = [
    (module, {**params, "knn_method": method})
    for module, params in ((itemknn, KNN), (asymknn, ASYM))
    for method in ("item", "user")
]


def interactions(seed, users=26, items=13, density=0.3, highest=1):
    rng = np.random.default_rng(seed)
    popularity = np.linspace(1.6, 0.2, items) * density
    X = (rng.random((users, items)) < popularity) * rng.integers(1, highest + 1, (users, items))
    X[0], X[:, 0] = 0, 0  # RecBole's padding
    return X.astype(np.float64)


@st.composite
def changes(draw, highest=1):
    """X before and after a mixture of pairs, whole users and whole items, forgotten and learned."""
    before = interactions(draw(st.integers(0, 10**6)), highest=highest)
    after = before.copy()
    for user in draw(st.lists(st.integers(1, before.shape[0] - 1), max_size=3)):
        after[user] = 0
    for item in draw(st.lists(st.integers(1, before.shape[1] - 1), max_size=2)):
        after[:, item] = 0
    cells = st.tuples(st.integers(1, before.shape[0] - 1), st.integers(1, before.shape[1] - 1))
    for cell in draw(st.lists(cells, max_size=8)):
        after[cell] = 0 if after[cell] else draw(st.integers(1, highest))
    return before, after


def change_between(before, after):
    """The change from X before to X after, from their difference: what requests make in another way."""
    delta = (after - before).tocsr()
    delta.eliminate_zeros()
    users = np.flatnonzero(np.diff(delta.indptr))
    return Change(after, users, np.unique(delta.indices), delta[users])


def corrected(module, params, before, after, B=None, dtype=np.float64, tolerance=None, cache=None):
    before, after = (sp.csr_matrix(X.astype(dtype)) for X in (before, after))
    B = module.fit(before, params, dtype) if B is None else B
    tolerance = tolerance or module.TOLERANCE[np.dtype(dtype).name]
    return module.correct(FittedMapping(before, B, params, cache or {}), change_between(before, after), tolerance)


# --- oracles ----------------------------------------------------------------------------------------------------------
