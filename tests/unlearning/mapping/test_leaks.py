"""What an attacker reads in a corrected B about who left: no more than in a fit without them."""

import numpy as np
import pytest
import scipy.sparse as sp

from recbole_llmd.errors import MappingMismatch
from recbole_llmd.unlearning.mapping import admm, dual_ease, ease, itemknn, nceplrec, slim, sparse_ease
from recbole_llmd.unlearning.mapping.corrected_matrix import CorrectedMatrix
from recbole_llmd.unlearning.mapping.correction import FittedMapping
from tests.helpers.mapping_cases import ADMM, EASE, KNN, NCE, SLIM, change_between, interactions
from tests.helpers.mapping_models import dense

CASES = [
    (ease, EASE, "float32"),
    (ease, EASE, "float64"),
    (ease, {"reg_weight": 500.0}, "float32"),
    (dual_ease, EASE, "float32"),
    (dual_ease, EASE, "float64"),
    (dual_ease, {"reg_weight": 500.0}, "float32"),
    *((sparse_ease, {"k": k, **EASE}, dtype) for k in (8, 49) for dtype in ("float32", "float64")),
    (itemknn, {**KNN, "k": 8}, "float32"),
    (slim, {**SLIM, "positive_only": False}, "float32"),
    (slim, {**SLIM, "positive_only": False}, "float64"),
    (admm, {**ADMM, "positive_only": False}, "float32"),
    (admm, {**ADMM, "positive_only": False, "center_columns": True}, "float64"),
    (nceplrec, NCE, "float64"),
]


def world(seed, users=90, items=50):
    """X, whose last user has eleven items: two that nobody else has, and many that no other user has together."""
    X = interactions(seed, users=users, items=items, density=0.12)
    history = np.arange(1, items, 5)
    X[:, history[-2:]] = 0
    X[-1] = 0
    X[-1, history] = 1
    return X, history


def after_forgetting(module, params, dtype, X, seed):
    """B corrected by one request after another, in which the last user is one of those who leave; and the fit."""
    rng = np.random.default_rng(seed)
    before = sp.csr_matrix(X.astype(dtype))
    B, cache = module.fit(before, params, dtype), {}
    for user in (*rng.choice(np.arange(1, len(X) - 1), 3, replace=False), len(X) - 1):
        after = before.toarray()
        after[user] = 0
        after = sp.csr_matrix(after)
        change = change_between(before, after)
        result = module.correct(FittedMapping(before, B, params, cache), change, module.TOLERANCE[dtype])
        before, B, cache = after, result.B, result.cache
    return dense(B), dense(module.fit(before, params, dtype)), before.toarray()


def auc(scores, inside):
    """How often one of ``inside`` is ranked above another, ties counted by half: 0.5 is chance."""
    one, other = scores[inside], scores[~inside]
    return float(np.mean((one[:, None] > other) + 0.5 * (one[:, None] == other)))


def attacks(B, X, history):
    """AUC by place of attack: the entries of items that nobody has any more, and of pairs that nobody has together."""
    mine = np.zeros(len(B), bool)
    mine[history] = True
    emptied = history[-2:]
    others = np.setdiff1d(np.arange(1, len(B)), emptied)
    apart = (X.T @ X == 0) & ~np.eye(len(B), dtype=bool)
    apart[[0, *emptied]] = apart[:, [0, *emptied]] = False
    pairs = np.outer(mine, mine)[apart]
    small = np.abs(B[apart])
    return {
        "column of an emptied item": max(auc(np.abs(B[others, item]), mine[others]) for item in emptied),
        "row of an emptied item": max(auc(np.abs(B[item, others]), mine[others]) for item in emptied),
        "pairs apart, by size": auc(small, pairs),
        "pairs apart, zero or not": auc((small > 0).astype(float), pairs),
        "pairs apart, rounding alone": auc(np.where(small < 1e-6, small, 0), pairs),
    }


@pytest.mark.parametrize("module, params, dtype", CASES)
@pytest.mark.parametrize("seed", range(3))
def test_a_corrected_mapping_tells_no_more_than_a_fit_without_who_left(module, params, dtype, seed):
    X, history = world(seed)
    corrected, fitted, left = after_forgetting(module, params, dtype, X, seed)
    found, expected = attacks(corrected, left, history), attacks(fitted, left, history)
    for place, value in found.items():
        assert abs(value - expected[place]) < 0.02, (place, value, expected[place])
    uncorrected = attacks(dense(module.fit(sp.csr_matrix(X.astype(dtype)), params, dtype)), left, history)
    assert max(uncorrected.values()) > 0.75  # the attack finds what is there


@pytest.mark.parametrize("weight", [5.0, 500.0, 5000.0])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_a_mapping_that_still_knows_one_of_sixty_sparse_users_is_found(weight, dtype):
    rng = np.random.default_rng(0)
    n, params = 900, {"reg_weight": weight}
    X = np.zeros((61, n), dtype)
    for user in range(1, 61):
        X[user, rng.choice(np.arange(1, n), 3, replace=False)] = 1
    B, errors = ease.fit(sp.csr_matrix(X), params, dtype), []
    original = CorrectedMatrix.of(B, ease.inverse_diagonal(sp.csr_matrix(X), B, weight))
    for user in range(1, 61):
        left, then = X.copy(), X.copy()
        left[user] = 0  # in X alone
        other = 1 + user % 60
        then[[user, other]] = 0
        before, after = sp.csr_matrix(left), sp.csr_matrix(then)
        with pytest.raises(MappingMismatch, match="backward error"):
            ease.correct(FittedMapping(before, B, params), change_between(before, after), ease.TOLERANCE[dtype])
        change = change_between(sp.csr_matrix(X), before)
        result = ease.correct(FittedMapping(sp.csr_matrix(X), B, params), change, ease.TOLERANCE[dtype])
        profile = sp.csr_matrix(X[[user]])
        still = ease.backward_error(before, weight, original.inverse_rows(profile), profile.toarray())
        errors.append((result.residual, still))
    corrected, uncorrected = np.array(errors).T
    assert corrected.max() < (1e-6 if dtype == "float32" else 1e-14)
    assert uncorrected.min() > 5 * ease.TOLERANCE[dtype]


@pytest.mark.parametrize("weight", [0.01, 1.0, 2.0])
def test_a_float32_fit_of_badly_conditioned_data_is_accepted_as_its_own(weight):
    X = interactions(0, users=300, items=120, density=0.6).astype(np.float32)
    X[:, 60:] = np.where(np.random.default_rng(1).random((300, 60)) < 0.02, 1 - X[:, 60:], X[:, :60])  # near copies
    X[0], X[:, 0] = 0, 0
    G = X.T @ X + weight * np.eye(120, dtype=np.float32)
    P = np.linalg.inv(G)  # as RecBole does
    B = P / -np.diag(P)
    np.fill_diagonal(B, 0)
    after = X.copy()
    after[7] = 0
    params, (before, after) = {"reg_weight": weight}, (sp.csr_matrix(X), sp.csr_matrix(after))
    result = ease.correct(FittedMapping(before, B, params), change_between(before, after), ease.TOLERANCE["float32"])
    exact = ease.fit(after.astype(np.float64), params, np.float64)
    own = ease.fit(after, params)
    distance = [np.linalg.norm(M - exact) / np.linalg.norm(exact) for M in (dense(result.B), own, B)]
    assert distance[0] < 10 * distance[1] + 1e-6 and distance[0] < distance[2]


@pytest.mark.parametrize("weight", [0.02, 1.0])
def test_errors_that_add_up_are_found_and_a_fit_is_never_refused(weight):
    """Of badly conditioned data in float32: every B that a sequence of requests gives is as good as a fit."""
    X = interactions(0, users=300, items=80, density=0.6).astype(np.float32)
    X[:, 40:] = np.where(np.random.default_rng(1).random((300, 40)) < 0.02, 1 - X[:, 40:], X[:, :40])  # near copies
    X[0], X[:, 0] = 0, 0
    params, tolerance = {"reg_weight": weight}, ease.TOLERANCE["float32"]
    before = sp.csr_matrix(X)
    B, cache = ease.fit(before, params), {}
    for user in range(1, 150):
        X[user] = 0
        after = sp.csr_matrix(X)
        change = change_between(before, after)
        result = ease.correct(FittedMapping(before, B, params, cache), change, tolerance)
        before, B, cache = after, result.B, result.cache
        if user % 30 == 0:  # an engine that has read what was saved, and one that has read a fit of RecBole's
            folded = ease.fold(B, after, params, tolerance) if isinstance(B, CorrectedMatrix) else result
            B, cache = folded.B, folded.cache
            nothing = change_between(after, after)
            for saved, remembered in ((B, {**cache, "stored": True}), (ease.fit(after, params), {})):
                ease.correct(FittedMapping(after, saved, params, remembered), nothing, tolerance)
    exact = ease.fit(before.astype(np.float64), params, np.float64)
    own, mine = (np.linalg.norm(M - exact) / np.linalg.norm(exact) for M in (ease.fit(before, params), dense(B)))
    assert mine < 20 * own


def test_an_item_that_was_alone_counts_again_as_soon_as_its_user_has_another():
    """User 5 had item 3 alone, and now learns item 1: item 3 is no part of the change."""
    X = interactions(3, users=40, items=20)
    X[:, 3], X[5] = 0, 0
    X[5, 3] = X[6, 3] = 1
    before = sp.csr_matrix(X)
    X[6] = 0
    first = sp.csr_matrix(X)
    forgotten = ease.correct(
        FittedMapping(before, ease.fit(before, EASE, np.float64), EASE), change_between(before, first), 1e-11
    )
    assert forgotten.B.alone.tolist() == [3] and not dense(forgotten.B)[3].any()
    X[5, 1] = 1
    second = sp.csr_matrix(X)
    learned = ease.correct(
        FittedMapping(first, forgotten.B, EASE, forgotten.cache), change_between(first, second), 1e-11
    )
    assert learned.method == "low-rank update" and dense(learned.B)[3, 1] > 0
    assert np.abs(dense(learned.B) - ease.fit(second, EASE, np.float64)).max() < 1e-12
