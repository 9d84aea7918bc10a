"""The corrections of the mapping models against oracles that share no code with them."""

import warnings

import numpy as np
import pytest
import scipy.sparse as sp
from hypothesis import given, settings
from sklearn.linear_model import ElasticNet, Lasso

from recbole_llmd.errors import MappingMismatch, UnsolvedError
from recbole_llmd.registry import mapping_module, mapping_names
from recbole_llmd.unlearning.mapping import admm, asymknn, itemknn, neighbours, slim, slim_columns
from tests.helpers.mapping_cases import ASYM, FITTED, KNN, NEIGHBOURS, SLIM, changes, corrected, interactions, quick
from tests.helpers.mapping_models import dense


def knn_by_hand(X, k, shrink=0.0, knn_method="item", alpha=None):
    """Every pair of items (or users), one at a time, in float32; sorted by similarity, then by id.

    Cosines; with ``alpha`` asymmetric ones, whose exponents NumPy takes of all sums at once.
    """
    X = X.astype(np.float32) if knn_method == "item" else X.T.astype(np.float32)
    n = X.shape[1]
    own = other = np.sqrt((X * X).sum(axis=0))
    if alpha is not None:
        own, other = X.sum(axis=0) ** alpha, X.sum(axis=0) ** (1 - alpha)
    w = np.zeros((n, n), np.float32)
    for j in range(n):
        similar = [
            (float(X[:, i] @ X[:, j] * (1 / (own[j] * other[i] + shrink + 1e-6))), i)
            for i in range(n)
            if i != j and X[:, i] @ X[:, j] > 0
        ]
        for value, i in sorted(similar, key=lambda pair: (-pair[0], pair[1]))[:k]:
            w[i, j] = value
    return w if knn_method == "item" else w.T


def by_hand(X, params):
    return knn_by_hand(X, *(params.get(key, 0.0) for key in ("k", "shrink")), params["knn_method"], params.get("alpha"))


def users_who_are_there(X):
    """X as RecBole has it where nobody else is in the data: a row of padding, and those with interactions."""
    return np.vstack([np.zeros(X.shape[1]), X[X.any(axis=1)]])


def slim_by_sklearn(X, params):
    """scikit-learn's ElasticNet as RecBole calls it, but run to the end."""
    X = users_who_are_there(X)
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
    X = users_who_are_there(X)
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


@pytest.mark.parametrize(
    "module, params",
    [
        *NEIGHBOURS,
        *((itemknn, {**KNN, **more}) for more in ({"k": 1}, {"k": 50}, {"shrink": 2.5})),
        *((asymknn, {**ASYM, **more}) for more in ({"k": 1}, {"alpha": 0.0}, {"alpha": 1.0}, {"alpha": 0.3})),
    ],
)
@given(changes(highest=2))
@quick
def test_neighbours_have_the_bits_of_a_brute_force_top_k(module, params, change):
    before, after = change
    for X in change:
        expected = by_hand(X, params)
        assert np.array_equal(module.fit(sp.csr_matrix(X), params).toarray(), expected)
    result = corrected(module, params, before, after, dtype=np.float32, tolerance=0.0)
    assert np.array_equal(result.B.toarray(), expected)
    assert result.B.format == ("csc" if params["knn_method"] == "item" else "csr")
    assert result.B.has_canonical_format


@pytest.mark.parametrize("module, params", NEIGHBOURS)
@given(changes(highest=2), changes())
@quick
def test_what_is_remembered_between_requests_is_corrected_too(module, params, first, second):
    """The second request starts from what the first left; the readers of the first find it as it was."""
    X, middle = first
    end = np.where(second[0] > 0, second[1], middle)  # another mixture of pairs, users and items
    left = corrected(module, params, X, middle, dtype=np.float32, tolerance=0.0)
    arrays = [(S, S.data.copy(), S.indices.copy(), S.indptr.copy()) for S in (left.B, left.cache["columns"])]
    totals = left.cache["totals"].copy()
    result = corrected(module, params, middle, end, B=left.B, cache=left.cache, dtype=np.float32, tolerance=0.0)
    assert np.array_equal(result.B.toarray(), by_hand(end, params))
    assert np.array_equal(result.cache["columns"].toarray(), end.T) and result.cache["columns"].has_canonical_format
    for S, *kept in arrays:
        assert all(map(np.array_equal, (S.data, S.indices, S.indptr), kept))
    assert np.array_equal(left.cache["totals"], totals)


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
        monkeypatch.setattr(neighbours, "ENTRIES", entries)
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
    for cache in ({}, {"exact_for": before.shape}):
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
        for cache in ({}, {"exact_for": before.shape}):
            B = dense(corrected(module, params, before, after, dtype=dtype, cache=cache).B)
            assert B.dtype == dtype
            assert np.linalg.norm(B - expected) <= allowed * max(np.linalg.norm(expected), 1e-3)


@pytest.mark.parametrize("module, params", FITTED[1:5])  # the last is centred, which connects all items
def test_a_warm_start_solves_only_what_the_change_violates(module, params):
    before = np.zeros((61, 21))
    before[1:31, 1:11], before[31:, 11:] = interactions(0, 31, 11)[1:, 1:], interactions(1, 31, 11)[1:, 1:]
    after = before.copy()
    after[40, np.flatnonzero(after[40])[:-1]] = 0
    result = corrected(module, params, before, after)
    assert 0 < int(result.method.split()[2]) <= 10  # the items of the other users are left alone
    assert corrected(module, params, before, before).method.startswith("warm start: 0 of")


@pytest.mark.parametrize("module, params", FITTED[1:])
def test_only_the_columns_concerned_are_checked_once_the_others_are_known_to_be_optimal(module, params, monkeypatch):
    before = np.zeros((61, 21))
    before[1:31, 1:11], before[31:, 11:] = interactions(0, 31, 11)[1:, 1:], interactions(1, 31, 11)[1:, 1:]
    fewer, without = before.copy(), before.copy()
    fewer[40, np.flatnonzero(before[40])[:-1]] = without[40] = 0
    checked, gradient = set(), slim_columns.Problem.gradient
    monkeypatch.setattr(
        slim_columns.Problem, "gradient", lambda self, C, columns: checked.update(columns) or gradient(self, C, columns)
    )
    first = module.fit(sp.csr_matrix(before), params, np.float64)
    centred = params is FITTED[-1][1]
    # A user who leaves with everything changes the number of users, and with it every column's penalty.
    for after, cache, expected in (
        (fewer, {}, range(21)),
        (fewer, {"exact_for": (61, 21)}, range(21) if centred else range(11, 21)),
        (without, {"exact_for": (61, 21)}, range(21)),
    ):
        checked.clear()
        result = corrected(module, params, before, after, B=first, cache=cache)
        assert result.cache == {"exact_for": (61, 21)}
        assert checked and checked <= set(expected) and (len(expected) < 21 or checked == set(expected))


@pytest.mark.parametrize("module, params", FITTED)
def test_a_user_who_has_left_with_everything_is_as_if_never_there(module, params):
    before, gone = interactions(3, users=40, items=15, highest=2), [4, 9, 10, 31]
    after, never = before.copy(), np.delete(before, gone, axis=0)
    after[gone] = 0
    expected = dense(module.fit(sp.csr_matrix(never), params, np.float64))
    for cache in ({}, {"exact_for": before.shape}):
        result = corrected(module, params, before, after, cache=cache)
        assert np.abs(dense(result.B) - expected).max() < 1e-8
    back = corrected(module, params, after, before, B=result.B, cache=result.cache)
    assert np.abs(dense(back.B) - dense(module.fit(sp.csr_matrix(before), params, np.float64))).max() < 1e-8
    means = [module.derived(sp.csr_matrix(X), expected, params).get("item_means", 0) for X in (after, never)]
    assert np.array_equal(*means)


def test_a_column_that_does_not_reach_the_tolerance_is_an_error(monkeypatch):
    monkeypatch.setattr("recbole_llmd.unlearning.mapping.slim_columns.ROUNDS", 1)
    with pytest.raises(UnsolvedError, match="tolerance"):
        slim.fit(sp.csr_matrix(interactions(0)), SLIM)


def test_lasso_with_equal_items_still_reaches_its_optimum():
    before = interactions(4)
    before[:, 5] = before[:, 4]  # without ridge the shares of the two are arbitrary
    after = before.copy()
    after[7] = 0
    params = {**SLIM, "l1_ratio": 1.0, "alpha": 0.01}
    B = dense(corrected(slim, params, before, after, tolerance=1e-9).B)

    def loss(B):
        counted = len(users_who_are_there(after))
        return 0.5 * ((after - after @ B) ** 2).sum() + counted * params["alpha"] * np.abs(B).sum()

    assert abs(loss(B) - loss(slim_by_sklearn(after, params))) < 1e-6


# --- all --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("module, params", [*FITTED, *NEIGHBOURS])
def test_forgetting_everything_and_learning_it_again(module, params):
    X, nothing = interactions(7), np.zeros_like(interactions(7))
    dtype = np.float32 if (module, params) in NEIGHBOURS else np.float64
    tolerance = module.TOLERANCE[np.dtype(dtype).name]
    empty = corrected(module, params, X, nothing, dtype=dtype, tolerance=tolerance)
    assert not dense(empty.B).any()
    back = corrected(module, params, nothing, X, dtype=dtype, B=empty.B, cache=empty.cache, tolerance=tolerance)
    expected = dense(module.fit(sp.csr_matrix(X), params, dtype))
    assert np.abs(dense(back.B) - expected).max() < 1e-9


def test_every_mapping_model_has_what_the_engine_reads():
    for name in mapping_names():
        module = mapping_module(name)
        for function in (module.fit, module.correct, module.derived, module.trained_on):
            assert callable(function)
        assert module.MATRIX and module.PARAMETERS and {"float32", "float64"} >= set(module.TOLERANCE) != set()
        assert set(module.REQUIRED) <= set(module.PARAMETERS)
