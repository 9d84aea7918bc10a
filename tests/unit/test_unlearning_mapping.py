"""The corrections of the mapping models against oracles that share no code with them."""

import warnings

import numpy as np
import pytest
import scipy.sparse as sp
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sklearn.linear_model import ElasticNet, Lasso
from threadpoolctl import threadpool_limits

from recbole_llmd.unlearning.mapping import MODELS, admm, cost, ease, itemknn, mapping_of, quadratic, slim
from recbole_llmd.unlearning.mapping.state import Change, MappingMismatch, State, Unsolved
from tests.unlearning import dense

quick = settings(max_examples=30, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))

EASE = {"reg_weight": 3.0}
KNN = {"k": 4, "shrink": 0.0, "knn_method": "item"}
SLIM = {"alpha": 0.02, "l1_ratio": 0.3, "positive_only": True, "hide_item": True}
ADMM = {"lambda1": 0.7, "lambda2": 5.0, "alpha": 0.5, "positive_only": True, "center_columns": False}
FITTED = [
    (ease, EASE),
    (slim, SLIM),
    (slim, {**SLIM, "positive_only": False}),
    (slim, {**SLIM, "hide_item": False}),
    (admm, ADMM),
    (admm, {**ADMM, "positive_only": False, "center_columns": True}),
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


def corrected(module, params, before, after, B=None, dtype=np.float64, tolerance=None, cache=None):
    before, after = (sp.csr_matrix(X.astype(dtype)) for X in (before, after))
    B = module.fit(before, params, dtype) if B is None else B
    tolerance = tolerance or module.TOLERANCE[np.dtype(dtype).name]
    return module.correct(State(before, B, params, cache or {}), Change.between(before, after), tolerance)


# --- oracles ----------------------------------------------------------------------------------------------------------


def ease_by_inverse(X, weight):
    P = np.linalg.inv(X.T @ X + weight * np.eye(X.shape[1]))
    B = -P / np.diag(P)
    np.fill_diagonal(B, 0)
    return B


def knn_by_hand(X, k, shrink):
    """Every pair of items, one at a time, in float32; sorted by similarity, then by item id."""
    X = X.astype(np.float32)
    n, norms = X.shape[1], np.sqrt((X * X).sum(axis=0))
    w = np.zeros((n, n), np.float32)
    for j in range(n):
        similar = [
            (float(X[:, i] @ X[:, j] * (1 / (norms[i] * norms[j] + shrink + 1e-6))), i)
            for i in range(n)
            if i != j and X[:, i] @ X[:, j] > 0
        ]
        for value, i in sorted(similar, key=lambda pair: (-pair[0], pair[1]))[:k]:
            w[i, j] = value
    return w


def slim_by_sklearn(X, params):
    """scikit-learn's ElasticNet as RecBole calls it, but run to the end."""
    B = np.zeros((X.shape[1],) * 2)
    model = ElasticNet(
        alpha=params["alpha"],
        l1_ratio=params["l1_ratio"],
        positive=params["positive_only"],
        fit_intercept=False,
        max_iter=100000,
        tol=1e-15,
    )
    for j in range(X.shape[1]):
        others = X.copy()
        if params["hide_item"]:
            others[:, j] = 0
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            B[:, j] = model.fit(others, X[:, j]).coef_
    return B


def admm_by_sklearn(X, params):
    """The weighted ridge term as extra rows of a Lasso."""
    means = X.mean(axis=0)
    ridge = params["lambda2"] * means ** params["alpha"]
    X = X - means if params["center_columns"] else X
    rows = np.vstack([X, np.diag(np.sqrt(ridge))])
    B = np.zeros((X.shape[1],) * 2)
    model = Lasso(
        alpha=params["lambda1"] / len(rows),
        positive=params["positive_only"],
        fit_intercept=False,
        max_iter=100000,
        tol=1e-15,
    )
    for j in range(X.shape[1]):
        others = rows.copy()
        others[:, j] = 0
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            B[:, j] = model.fit(others, np.append(X[:, j], np.zeros(len(ridge)))).coef_
    return B


# --- EASE -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype, allowed", [(np.float64, 1e-9), (np.float32, 1e-4)])
@given(changes(highest=3))
@quick
def test_ease_is_the_inverse_after_any_change(dtype, allowed, change):
    before, after = change
    expected = ease_by_inverse(after, EASE["reg_weight"])
    result = corrected(ease, EASE, before, after, dtype=dtype, B=ease_by_inverse(before, 3.0).astype(dtype))
    assert np.linalg.norm(result.B - expected) <= allowed * np.linalg.norm(expected)
    assert result.B.dtype == dtype
    fitted = ease.fit(sp.csr_matrix(after), EASE, dtype)
    assert np.linalg.norm(fitted - expected) <= allowed * np.linalg.norm(expected)


@given(changes(highest=2))
@quick
def test_the_factors_of_ease_make_up_the_change_of_the_gram_matrix(change):
    before, after = change
    X = sp.csr_matrix(before)
    factors, signature = ease.low_rank(Change.between(X, sp.csr_matrix(after)), X)
    assert np.allclose(signature @ signature, np.eye(len(signature)))
    assert np.allclose(factors.T @ (signature @ factors.toarray()), after.T @ after - before.T @ before, atol=1e-12)


def test_ease_forgets_a_popular_item_at_rank_two():
    before = interactions(0, users=200, items=40)
    after = before.copy()
    after[:, 1] = 0
    result = corrected(ease, EASE, before, after)
    assert result.method == "low-rank update" and result.estimates["rank"] == 2


def test_ease_corrects_in_place_and_remembers_the_diagonal(monkeypatch):
    before = interactions(1)
    B = ease_by_inverse(before, 3.0)
    X, cache = before, {}
    monkeypatch.setattr(ease, "refit_seconds", lambda n, dtype: np.inf)
    for user in range(1, 8):
        after = X.copy()
        after[user] = 0
        result = corrected(ease, EASE, X, after, B=B, cache=cache)
        assert result.B is B
        assert np.abs(B - ease_by_inverse(after, 3.0)).max() < 1e-12
        X, cache = after, result.cache
        monkeypatch.setattr(ease, "inverse_diagonal", None)  # not needed any more


def test_ease_updates_a_grown_model_without_computing_the_diagonal_anew(monkeypatch):
    X = interactions(1)
    grown = np.pad(X, ((0, 1), (0, 2)))
    after = grown.copy()
    after[-1, -1] = after[3, -2] = after[-1, 4] = 1
    cache = {"diagonal": np.diag(np.linalg.inv(X.T @ X + 3.0 * np.eye(X.shape[1])))}
    monkeypatch.setattr(ease, "refit_seconds", lambda n, dtype: np.inf)
    result = corrected(ease, EASE, grown, after, B=np.pad(ease_by_inverse(X, 3.0), (0, 2)), cache=cache)
    assert result.method == "low-rank update" and result.residual < 1e-12
    assert np.abs(result.B - ease_by_inverse(after, 3.0)).max() < 1e-12


def test_ease_refits_where_that_is_cheaper(monkeypatch):
    before, after = interactions(2), interactions(3)
    monkeypatch.setattr(ease, "refit_seconds", lambda n, dtype: 0.0)
    result = corrected(ease, EASE, before, after)
    assert result.method == "refit" and result.residual < 1e-12
    assert np.abs(result.B - ease_by_inverse(after, 3.0)).max() < 1e-12


def test_ease_refits_when_the_update_drifted(monkeypatch):
    before = interactions(2)
    after = before.copy()
    after[3] = 0
    woodbury = ease._woodbury

    def off(*arguments):
        image, solved, diagonal = woodbury(*arguments)
        return image, solved * 1.5, diagonal

    monkeypatch.setattr(ease, "_woodbury", off)
    monkeypatch.setattr(ease, "refit_seconds", lambda n, dtype: np.inf)
    result = corrected(ease, EASE, before, after, tolerance=1e-10)
    assert result.method == "refit" and "residual" in result.notes[0]
    assert np.abs(result.B - ease_by_inverse(after, 3.0)).max() < 1e-12
    monkeypatch.setattr(ease, "fit", lambda *arguments: np.zeros_like(before.T @ before))
    B = ease_by_inverse(before, 3.0)
    with pytest.raises(Unsolved):
        corrected(ease, EASE, before, after, B=B, tolerance=1e-10)
    assert np.abs(B - ease_by_inverse(before, 3.0)).max() < 1e-12  # as it was


@pytest.mark.parametrize("threads", [1, 2])
def test_ease_restores_what_it_wrote_when_it_is_interrupted(monkeypatch, threads):
    before = interactions(2, items=40)
    after = before.copy()
    after[3] = 0
    B = ease_by_inverse(before, 3.0)
    monkeypatch.setattr(ease, "BLOCK_BYTES", 5 * 40 * 8)
    matmul, calls = np.matmul, []

    def interrupted(*arguments, **keywords):
        calls.append(B.copy())
        if len(calls) == 4:
            raise MemoryError
        return matmul(*arguments, **keywords)

    monkeypatch.setattr(np, "matmul", interrupted)
    monkeypatch.setattr(ease, "refit_seconds", lambda n, dtype: np.inf)
    with threadpool_limits(threads), pytest.raises(MemoryError):
        corrected(ease, EASE, before, after, B=B)
    assert np.abs(calls[-1] - ease_by_inverse(before, 3.0)).max() > 1e-4  # it had begun
    assert np.abs(B - ease_by_inverse(before, 3.0)).max() < 1e-12


def test_ease_refuses_a_matrix_of_other_interactions():
    with pytest.raises(MappingMismatch):
        corrected(ease, EASE, interactions(0), interactions(1), B=ease_by_inverse(interactions(5), 3.0))
    with pytest.raises(MappingMismatch):
        corrected(ease, EASE, interactions(0), interactions(1), B=ease_by_inverse(interactions(0), 4.0))


def test_ease_takes_little_memory():
    import tracemalloc

    rng = np.random.default_rng(0)
    n = 1200
    X = sp.random(1500, n, 0.01, format="csr", random_state=0, dtype=np.float32)
    X.data[:] = 1
    B = ease.fit(X, {"reg_weight": 50.0})
    drop = np.ones(1500, np.float32)
    drop[rng.choice(1500, 5, replace=False)] = 0
    change = Change.between(X, sp.csr_matrix(sp.diags(drop.astype(np.float32)) @ X))
    cost.rates("float32")
    for fresh, allowed in ((False, 0.4), (True, 1.2)):
        tracemalloc.start()
        result = (
            ease._refit(change.X, {"reg_weight": 50.0}, B.dtype, 1e-4, {})
            if fresh
            else ease.correct(State(X, B, {"reg_weight": 50.0}), change, 1e-4)
        )
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert result.method == ("refit" if fresh else "low-rank update")
        assert peak <= allowed * B.nbytes + (1 << 21)  # two block buffers are constant


def test_the_cost_estimates_grow_as_the_work_does():
    assert cost.refit_seconds(2000, "float32") > 4 * cost.refit_seconds(1000, "float32")
    one, many = (cost.low_rank_seconds(2000, rank, 10 * rank, "float32") for rank in (1, 500))
    assert one < cost.refit_seconds(2000, "float32") and many > 2 * one


# --- ItemKNN ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("params", [KNN, {**KNN, "k": 1}, {**KNN, "k": 50}, {**KNN, "shrink": 2.5}])
@given(changes(highest=2))
@quick
def test_itemknn_has_the_bits_of_a_brute_force_top_k(params, change):
    before, after = change
    for X in change:
        expected = knn_by_hand(X, params["k"], params["shrink"])
        assert np.array_equal(itemknn.fit(sp.csr_matrix(X), params).toarray(), expected)
    result = corrected(itemknn, params, before, after, dtype=np.float32, tolerance=0.0)
    assert np.array_equal(result.B.toarray(), expected)
    assert result.B.format == "csc" and result.B.has_canonical_format


def test_itemknn_recomputes_only_columns_that_need_it():
    before = interactions(0, users=300, items=60, density=0.15)
    after = before.copy()
    after[5] = 0
    result = corrected(itemknn, {**KNN, "k": 10}, before, after, dtype=np.float32, tolerance=0.0)
    counts = [int(result.method.split(word)[0].split()[-1]) for word in (" columns merged", " columns recomputed")]
    assert counts[0] > counts[1]
    assert np.array_equal(result.B.toarray(), knn_by_hand(after, 10, 0.0))


def test_itemknn_decides_ties_by_item_id_in_blocks_of_any_size(monkeypatch):
    X = np.zeros((5, 9))
    X[1:, 1:] = 1  # all similarities equal
    for entries in (1, 7, 1 << 20):
        monkeypatch.setattr(itemknn, "ENTRIES", entries)
        w = itemknn.fit(sp.csr_matrix(X), {**KNN, "k": 3})
        assert [w[:, j].indices.tolist() for j in (1, 2, 8)] == [[2, 3, 4], [1, 3, 4], [1, 2, 3]]


def test_itemknn_takes_a_model_that_differs_in_ties_and_refuses_any_other():
    X = np.zeros((5, 9))
    X[1:, 1:] = 1
    w = itemknn.fit(sp.csr_matrix(X), {**KNN, "k": 3}).tolil()
    w[8, 1], w[2, 1] = w[2, 1], 0
    after = X.copy()
    after[1, 1] = 0
    result = corrected(itemknn, {**KNN, "k": 3}, X, after, B=w.tocsc(), dtype=np.float32, tolerance=0.0)
    assert result.notes[0].startswith("1 columns had a tie")
    assert np.array_equal(result.B.toarray(), knn_by_hand(after, 3, 0.0))
    w[8, 1] = 0.5
    with pytest.raises(MappingMismatch):
        corrected(itemknn, {**KNN, "k": 3}, X, after, B=w.tocsc(), dtype=np.float32, tolerance=0.0)


# --- SLIMElastic and ADMMSLIM -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("module, params", FITTED[1:4])
@given(changes(highest=2))
@settings(quick, max_examples=8)
def test_slim_is_sklearns_elastic_net_after_any_change(module, params, change):
    before, after = change
    expected = slim_by_sklearn(after, params)
    for cache in ({}, {"own": before.shape}):
        assert np.abs(dense(corrected(module, params, before, after, cache=cache).B) - expected).max() < 1e-8


@pytest.mark.parametrize("params", [p for module, p in FITTED if module is admm])
@given(changes())
@settings(quick, max_examples=8)
def test_admm_is_a_lasso_with_ridge_rows_after_any_change(params, change):
    before, after = change
    expected = admm_by_sklearn(after, params)
    assert np.abs(dense(corrected(admm, params, before, after).B) - expected).max() < 1e-8


@pytest.mark.parametrize("module, params", FITTED)
@given(changes(highest=2))
@settings(quick, max_examples=15)
def test_a_correction_equals_a_fit_from_scratch(module, params, change):
    before, after = change
    for dtype, allowed in ((np.float64, 1e-9), (np.float32, 1e-4)):
        expected = dense(module.fit(sp.csr_matrix(after), params, np.float64))
        for cache in ({}, {"own": before.shape}):
            found = dense(corrected(module, params, before, after, dtype=dtype, cache=cache).B)
            assert found.dtype == dtype
            assert np.linalg.norm(found - expected) <= allowed * max(np.linalg.norm(expected), 1e-3)


@pytest.mark.parametrize("module, params", FITTED[1:5])  # the last is centred, which connects all items
def test_a_warm_start_solves_only_what_the_change_violates(module, params):
    before = np.zeros((61, 21))
    before[1:31, 1:11], before[31:, 11:] = interactions(0, 31, 11)[1:, 1:], interactions(1, 31, 11)[1:, 1:]
    after = before.copy()
    after[40] = 0
    result = corrected(module, params, before, after)
    assert 0 < int(result.method.split()[2]) <= 10  # the items of the other users are left alone
    assert corrected(module, params, before, before).method.startswith("warm start: 0 of")


@pytest.mark.parametrize("module, params", FITTED[1:])
def test_only_the_columns_concerned_are_checked_once_the_others_are_known_to_be_optimal(module, params, monkeypatch):
    before = np.zeros((61, 21))
    before[1:31, 1:11], before[31:, 11:] = interactions(0, 31, 11)[1:, 1:], interactions(1, 31, 11)[1:, 1:]
    after = before.copy()
    after[40] = 0
    checked, gradient = set(), quadratic.Problem.gradient
    monkeypatch.setattr(
        quadratic.Problem, "gradient", lambda self, C, columns: checked.update(columns) or gradient(self, C, columns)
    )
    first = module.fit(sp.csr_matrix(before), params, np.float64)
    everything = set(range(21))
    for shape, expected in (((60, 21), everything), ((61, 21), everything if params is FITTED[-1][1] else None)):
        checked.clear()
        result = corrected(module, params, before, after, B=first, cache={"own": shape})
        assert result.cache == {"own": (61, 21)}
        assert checked == expected if expected else 0 < len(checked) and min(checked) > 10


def test_a_column_that_does_not_reach_the_tolerance_is_an_error(monkeypatch):
    monkeypatch.setattr("recbole_llmd.unlearning.mapping.quadratic.ROUNDS", 1)
    with pytest.raises(Unsolved, match="tolerance"):
        slim.fit(sp.csr_matrix(interactions(0)), SLIM)


def test_lasso_with_equal_items_still_reaches_its_optimum():
    before = interactions(4)
    before[:, 5] = before[:, 4]  # without ridge the shares of the two are arbitrary
    after = before.copy()
    after[7] = 0
    params = {**SLIM, "l1_ratio": 1.0, "alpha": 0.01}
    B = dense(corrected(slim, params, before, after, tolerance=1e-9).B)

    def loss(B):
        return 0.5 * ((after - after @ B) ** 2).sum() + len(after) * params["alpha"] * np.abs(B).sum()

    assert abs(loss(B) - loss(slim_by_sklearn(after, params))) < 1e-6


# --- all --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("module, params", [*FITTED, (itemknn, KNN)])
def test_forgetting_everything_and_learning_it_again(module, params):
    X, nothing = interactions(7), np.zeros_like(interactions(7))
    dtype = np.float32 if module is itemknn else np.float64
    tolerance = module.TOLERANCE[np.dtype(dtype).name]
    empty = corrected(module, params, X, nothing, dtype=dtype, tolerance=tolerance)
    assert not dense(empty.B).any()
    back = corrected(module, params, nothing, X, dtype=dtype, B=empty.B, cache=empty.cache, tolerance=tolerance)
    expected = dense(module.fit(sp.csr_matrix(X), params, dtype))
    assert np.abs(dense(back.B) - expected).max() < 1e-9


def test_every_mapping_model_has_what_the_engine_reads():
    for name in MODELS:
        module = mapping_of(name)
        assert callable(module.fit) and callable(module.correct) and "float32" in module.TOLERANCE
        assert module.MATRIX and module.PARAMETERS
