"""EASE by its dual against the inverse: fits, changes, what is folded, and what is never made."""

import pickle
import tracemalloc

import numpy as np
import pytest
import scipy.sparse as sp
from hypothesis import given

from recbole_llmd.errors import MappingMismatch
from recbole_llmd.unlearning.mapping import dual_ease, dual_matrix, ease
from recbole_llmd.unlearning.mapping.correction import FittedMapping, padded
from recbole_llmd.unlearning.mapping.dual_matrix import CorrectedDual, DualMatrix
from tests.helpers.mapping_cases import EASE, change_between, changes, corrected, interactions, quick
from tests.helpers.mapping_models import dense


def by_inverse(X, weight=3.0):
    P = np.linalg.inv(X.T @ X + weight * np.eye(X.shape[1]))
    B = -P / np.diag(P)
    np.fill_diagonal(B, 0)
    return B


@pytest.fixture
def always_update(monkeypatch):
    monkeypatch.setattr(dual_ease, "dual_refit_seconds", lambda *arguments: np.inf)
    monkeypatch.setattr(dual_matrix, "refit_seconds", lambda *arguments: np.inf)


@pytest.mark.parametrize("dtype, allowed", [(np.float64, 1e-11), (np.float32, 2e-5)])
@given(changes(highest=3))
@quick
def test_it_is_the_inverse_after_any_change(dtype, allowed, change):
    before, after = change
    expected = by_inverse(after)
    result = corrected(dual_ease, EASE, before, after, dtype=dtype)
    for B in (result.B, dual_ease.fit(sp.csr_matrix(after), EASE, dtype)):
        assert np.linalg.norm(dense(B) - expected) <= allowed * np.linalg.norm(expected)
        assert B.dtype == dtype and not dense(B).diagonal().any()
        assert np.abs(sp.csr_matrix(after) @ B - after @ expected).max() <= allowed * 30
    assert result.residual <= result.tolerance


@pytest.mark.parametrize("weight", [1.0, 100.0])
def test_float32_scores_are_as_exact_as_those_of_a_dense_matrix(weight):
    """Where X'X is large beside λ, the difference that defines the dual alone would lose what it is asked for."""
    X = interactions(0, users=300, items=400, density=0.3)
    X[:200] = X[200:].mean(axis=0).round() + (np.random.default_rng(0).random((200, 400)) < 0.02)  # nearly alike
    X[0], X[:, 0] = 0, 0
    exact = by_inverse(X, weight)
    X32 = sp.csr_matrix(X.astype(np.float32))
    other = X32[[3, 250]] + X32[[7, 9]]  # no user's rows
    other.data[:] = 1
    for rows in (X32, other):
        errors = [
            np.abs(rows @ B - rows @ exact).max()
            for B in (dual_ease.fit(X32, {"reg_weight": weight}), ease.fit(X32, {"reg_weight": weight}))
        ]
        assert errors[0] < 2 * errors[1] + 1e-6


def test_columns_rows_and_pickles_are_those_of_one_matrix(always_update):
    before = interactions(2, users=20, items=40)
    after = before.copy()
    after[[4, 19]] = 0
    after[9, 5] = 1 - after[9, 5]
    B, expected = corrected(dual_ease, EASE, before, after).B, by_inverse(after)
    assert isinstance(B, CorrectedDual) and B.rank == 4
    for matrix in (B, B.folded(), pickle.loads(pickle.dumps(B))):
        for columns in (5, np.array([0, 1, 5, 17]), slice(2, 9)):
            assert np.abs(matrix[:, columns] - expected[:, columns]).max() < 1e-12
        for rows in (sp.csr_matrix(after[[3, 9, 4]]), after[[3, 9, 4]], sp.csr_matrix(np.eye(40))):
            assert np.abs(rows @ matrix - rows @ expected).max() < 1e-12
    again = pickle.loads(pickle.dumps(B))
    assert type(again) is DualMatrix and (again.X != sp.csr_matrix(after)).nnz == 0
    with pytest.raises(TypeError, match="only columns"):
        again[3]


@pytest.mark.parametrize("dtype, allowed", [(np.float64, 1e-12), (np.float32, 1e-5)])
def test_many_requests_are_folded_by_updates_and_nothing_given_is_written(always_update, monkeypatch, dtype, allowed):
    monkeypatch.setattr(ease, "PENDING", 3)
    X = interactions(1, users=60, items=90)
    B, cache, earlier, kinds = dual_ease.fit(sp.csr_matrix(X.astype(dtype)), EASE, dtype), {}, [], []
    monkeypatch.setattr(dual_matrix.DualMatrix, "of", None)  # no other fit
    rng = np.random.default_rng(0)
    for step in range(16):
        after = X.copy()
        if step % 4 == 3:
            after[:, rng.integers(1, 90)] = 0
        elif step % 4 == 2:
            after[5, rng.integers(1, 90, 4)] += 1
        else:
            after[rng.integers(1, 60)] = 0
        earlier.append((B, dense(B)))
        result = corrected(dual_ease, EASE, X, after, B=B, dtype=dtype, cache=cache)
        kinds.append(type(result.B).__name__)
        assert result.method == "low-rank update"
        assert np.abs(dense(result.B) - by_inverse(after)).max() < allowed
        X, B, cache = after, result.B, result.cache
    assert {"DualMatrix", "CorrectedDual"} == set(kinds)
    assert all(np.array_equal(dense(matrix), content) for matrix, content in earlier)


def test_it_grows_by_users_and_items(always_update):
    X = interactions(1)
    grown = np.pad(X, ((0, 3), (0, 2)))
    after = grown.copy()
    after[-1, -1] = after[3, -2] = after[-1, 4] = after[-3, 2] = 1
    B = padded(dual_ease.fit(sp.csr_matrix(X), EASE, np.float64), 2)
    assert B.shape == (15, 15) and np.abs(dense(B) - np.pad(by_inverse(X), (0, 2))).max() < 1e-13
    result = corrected(dual_ease, EASE, grown, after, B=B)
    assert result.method == "low-rank update"
    for matrix in (result.B, result.B.folded()):
        assert np.abs(dense(matrix) - by_inverse(after)).max() < 1e-12
    assert result.B.folded().inverse.shape == (29, 29)


def test_the_dual_is_zero_between_users_that_nothing_connects(always_update):
    X = np.zeros((40, 24))
    X[1:20, 1:11], X[20:39, 11:] = interactions(0, 20, 11)[1:, 1:], interactions(1, 20, 14)[1:, 1:]
    X[39, [2, 5, 12, 15, 20]] = 1
    after = X.copy()
    after[39] = 0
    result = corrected(dual_ease, EASE, X, after, dtype=np.float32)
    K = after @ after.T + 3 * np.eye(40)
    assert result.method == "low-rank update" and type(result.B) is DualMatrix
    assert np.abs(result.B.inverse - np.linalg.inv(K)).max() < 1e-6
    assert not result.B.inverse[:20, 20:].any() and not result.B.inverse[20:, :20].any()
    assert result.B.inverse[39, 39] == np.float32(1 / 3)
    B = dense(result.B)
    assert not B[:11, 11:].any() and not B[11:, :11].any() and B[1:11, 1:11].any()


def test_what_leaves_an_item_alone_leaves_exact_zeros(always_update):
    X = interactions(0, users=30, items=50)
    X[:, 1:4] = 0
    X[-1, [1, 2, 3]] = X[1, 3] = 1
    X[1, 4:] = 0
    after = X.copy()
    after[-1] = 0
    for dtype in (np.float32, np.float64):
        result = corrected(dual_ease, EASE, X, after, dtype=dtype)
        assert result.method == "low-rank update"
        for matrix in (result.B, result.B.folded()):
            B = dense(matrix)
            assert not B[:, 1:4].any() and not B[1:4].any()
            assert matrix.diagonal[[1, 2, 3]].tolist() == [1 / 3, 1 / 3, 1 / 4]
        learned = after.copy()
        learned[7, [1, 3]] = 1
        back = corrected(dual_ease, EASE, after, learned, B=result.B, cache=result.cache, dtype=dtype)
        assert np.abs(dense(back.B) - by_inverse(learned)).max() < (1e-5 if dtype == np.float32 else 1e-12)


def test_a_drifted_dual_is_fitted_anew(always_update, monkeypatch):
    X = interactions(2, users=30, items=50)
    after = X.copy()
    after[3] = 0
    monkeypatch.setattr(dual_matrix, "_less", lambda inverse, *rest: inverse * 1.01)
    B = corrected(dual_ease, EASE, X, after).B.folded()
    assert np.abs(dense(B) - by_inverse(after)).max() < 1e-12
    woodbury = ease.woodbury
    monkeypatch.setattr(ease, "woodbury", lambda *a: [part * factor for part, factor in zip(woodbury(*a), (1, 2, 1))])
    result = corrected(dual_ease, EASE, X, after)
    assert result.method == "refit" and "backward error" in result.notes[0]
    assert np.abs(dense(result.B) - by_inverse(after)).max() < 1e-12


def test_many_changes_are_fitted_anew_where_that_is_cheaper(monkeypatch):
    monkeypatch.setattr(dual_ease, "dual_refit_seconds", lambda *arguments: 0.0)
    before, after = interactions(2), interactions(3)
    result = corrected(dual_ease, EASE, before, after)
    assert result.method == "refit" and result.residual < 1e-12
    assert np.abs(dense(result.B) - by_inverse(after)).max() < 1e-12


def test_a_matrix_of_other_interactions_is_refused():
    for X, weight in ((interactions(5), 3.0), (interactions(0), 4.0)):
        B = dual_ease.fit(sp.csr_matrix(X), {"reg_weight": weight}, np.float64)
        with pytest.raises(MappingMismatch, match="backward error"):
            corrected(dual_ease, EASE, interactions(0), interactions(1), B=B)


def test_nothing_of_items_by_items_is_made():
    n_users, n_items = 300, 6000  # an array of items by items would be 144 MB
    X = sp.random(n_users, n_items, 0.003, format="csr", random_state=0, dtype=np.float32)
    X.data[:] = 1
    keep = np.ones(n_users, np.float32)
    keep[[3, 9]] = 0
    change = change_between(X, sp.csr_matrix(sp.diags(keep) @ X))
    tracemalloc.start()
    B = dual_ease.fit(X, {"reg_weight": 50.0})
    result = dual_ease.correct(FittedMapping(X, B, {"reg_weight": 50.0}), change, 3e-5)
    scores = X[:200] @ result.B.folded()
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert result.method == "low-rank update" and scores.shape == (200, n_items)
    assert peak < 40e6


def test_the_diagonal_keeps_its_digits_where_an_item_is_popular():
    X = sp.csr_matrix((np.ones(60), (np.arange(60), np.arange(60) % 3)), shape=(60, 90))  # twenty users of the same
    B = dual_ease.fit(X, {"reg_weight": 1e-3}, np.float32)
    assert np.allclose(B.diagonal, [*np.full(3, 1 / 20.001), *np.full(87, 1e3)], rtol=1e-5)
