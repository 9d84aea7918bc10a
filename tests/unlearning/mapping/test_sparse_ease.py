"""SparseEASE against a loop over its columns, against EASE, and its corrections against its own fit, to the bit."""

import numpy as np
import pytest
import scipy.sparse as sp
from hypothesis import given, settings

from recbole_llmd.errors import MappingMismatch, SettingsError, UnsolvedError
from recbole_llmd.unlearning.mapping import ease, neighbour_regression, sparse_ease
from recbole_llmd.unlearning.mapping.correction import FittedMapping, padded
from tests.helpers.mapping_cases import change_between, changes, corrected, interactions, quick

PARAMS = {"k": 4, "reg_weight": 3.0}
KS = (1, 4, 7, 12, 50)  # of 13 items


def neighbours_by_hand(X, k):
    """The sets S_j: sorted by float32 cosine, then by id, one pair at a time."""
    X, n = X.astype(np.float32), X.shape[1]
    norms = np.sqrt((X * X).sum(axis=0))
    sets = []
    for j in range(n):
        near = [
            (-float(X[:, i] @ X[:, j] * (1 / (norms[j] * norms[i] + np.float32(0) + 1e-6))), i)
            for i in range(n)
            if i != j and (k >= n - 1 or X[:, i] @ X[:, j] > 0)
        ]
        sets.append(sorted(i for _, i in sorted(near)[:k]))
    return sets


def by_hand(X, k, reg_weight):
    """One column at a time, in float64."""
    X = X.astype(np.float64)
    G = X.T @ X
    B = np.zeros_like(G)
    for j, S in enumerate(neighbours_by_hand(X, k)):
        B[S, j] = np.linalg.solve(G[np.ix_(S, S)] + reg_weight * np.eye(len(S)), G[S, j])
    return B


def same_bits(B, expected):
    return all(
        np.array_equal(getattr(B, name), getattr(expected, name)) for name in ("data", "indices", "indptr")
    ) and (B.dtype, B.shape, B.format) == (expected.dtype, expected.shape, "csr")


@pytest.mark.parametrize("k", KS)
@given(changes(highest=2))
@settings(quick, max_examples=15)
def test_a_fit_is_the_regression_of_every_item_on_its_neighbours(k, change):
    """The changes hold items of nobody, items with fewer than k others beside them, and users without anything."""
    for X in change:
        B = sparse_ease.fit(sp.csr_matrix(X), {"k": k, "reg_weight": 3.0}, np.float64)
        np.testing.assert_allclose(B.toarray(), by_hand(X, k, 3.0), rtol=0, atol=1e-12)
        listed = [B.tocsc()[:, [j]].indices.tolist() for j in range(13)]
        assert listed == neighbours_by_hand(X, k) and B.has_canonical_format
        single = sparse_ease.fit(sp.csr_matrix(X), {"k": k, "reg_weight": 3.0})
        assert single.dtype == np.float32 and np.array_equal(single.toarray(), B.toarray().astype(np.float32))


@pytest.mark.parametrize("weight", [0.5, 250.0])
def test_with_all_other_items_it_is_ease(weight):
    X = interactions(1, users=120, items=40, highest=2)
    X[:, 7] = 0
    together = X.T @ X > 0
    assert not together[1:, 1:].all()  # EASE relates also items that nobody has together
    expected = ease.fit(sp.csr_matrix(X), {"reg_weight": weight}, np.float64)
    for k in (39, 40, 1000):
        B = sparse_ease.fit(sp.csr_matrix(X), {"k": k, "reg_weight": weight}, np.float64)
        np.testing.assert_allclose(B.toarray(), expected, rtol=0, atol=1e-12)
    fewer = sparse_ease.fit(sp.csr_matrix(X), {"k": 10, "reg_weight": weight}, np.float64)
    assert np.abs(fewer.toarray() - expected).max() > 1e-4


@pytest.mark.parametrize("k", KS)
@given(changes(highest=2), changes())
@settings(quick, max_examples=15)
def test_corrections_have_the_bits_of_a_fit(k, first, second):
    """From a model as it was fitted, and from what the first request left; readers find both as they were."""
    params = {"k": k, "reg_weight": 3.0}
    X, middle = first
    end = np.where(second[0] > 0, second[1], middle)
    for dtype in (np.float32, np.float64):
        B = sparse_ease.fit(sp.csr_matrix(X.astype(dtype)), params, dtype)
        kept = B.copy()
        left = corrected(sparse_ease, params, X, middle, B=B, dtype=dtype)
        if len(change_between(sp.csr_matrix(X), sp.csr_matrix(middle)).users):
            assert same_bits(left.B, sparse_ease.fit(sp.csr_matrix(middle.astype(dtype)), params, dtype))
            assert left.residual is None and left.notes == ()
        held = left.B.copy()
        result = corrected(sparse_ease, params, middle, end, B=left.B, dtype=dtype, cache=left.cache)
        if len(change_between(sp.csr_matrix(middle), sp.csr_matrix(end)).users):
            assert same_bits(result.B, sparse_ease.fit(sp.csr_matrix(end.astype(dtype)), params, dtype))
        assert same_bits(B, kept) and same_bits(left.B, held)


def groups(seed=0, users=61):
    """Two groups of users, with ten items each that the other has not."""
    X = np.zeros((users, 21))
    X[1:31, 1:11] = interactions(seed, 31, 11, density=0.4)[1:, 1:]
    X[31:, 11:] = interactions(seed + 1, users - 30, 11, density=0.4)[1:, 1:]
    return X


@pytest.mark.parametrize("remembered", [False, True])
def test_only_columns_that_the_change_concerns_are_solved(monkeypatch, remembered):
    before = groups()
    after = before.copy()
    after[40] = 0
    cache = {"exact_for": before.shape} if remembered else {}
    B, asked = sparse_ease.fit(sp.csr_matrix(before), PARAMS, np.float64), []
    regress = sparse_ease.regress

    def watched(X, transposed, items, *arguments):
        asked.append(items.tolist())
        return regress(X, transposed, items, *arguments)

    monkeypatch.setattr(sparse_ease, "regress", watched)
    result = corrected(sparse_ease, PARAMS, before, after, B=B, cache=cache)
    forgotten = set(np.flatnonzero(before[40]))
    columns = [
        j
        for j, (old, new) in enumerate(zip(neighbours_by_hand(before, 4), neighbours_by_hand(after, 4)))
        if forgotten & {*old, *new, j}
    ]
    assert asked[0 if remembered else 1 :] == [columns] and max(columns[:1]) >= 11 and len(columns) <= 10
    assert result.method == f"neighbours merged, {len(columns)} of 21 columns solved"


def test_where_nearly_all_columns_are_touched_it_is_fitted_anew():
    before = interactions(2, users=60, items=12, density=0.6)
    after = before.copy()
    after[:30] = 0
    result = corrected(sparse_ease, PARAMS, before, after)
    assert result.method == "refit: 11 of 12 columns touched"
    assert same_bits(result.B, sparse_ease.fit(sp.csr_matrix(after), PARAMS, np.float64))


@pytest.mark.parametrize(
    "name, value", [("ENTRIES", 1), ("ENTRIES", 700), ("OPERATIONS", 1), ("TOGETHER", 1), ("TOGETHER", 700)]
)
def test_bits_do_not_depend_on_what_is_solved_together(monkeypatch, name, value):
    X = sp.csr_matrix(interactions(5, users=200, items=60, highest=2) * 0.3)  # whose sums are rounded
    params = {"k": 25, "reg_weight": 0.7}
    whole = sparse_ease.fit(X, params, np.float64)
    monkeypatch.setattr(neighbour_regression, name, value)
    assert same_bits(sparse_ease.fit(X, params, np.float64), whole)


@pytest.mark.parametrize("k", [3, 12, 13, 50])
def test_newcomers_are_learned_to_the_bits_of_a_fit(k):
    """Also where the items are more than k only with the new ones."""
    params, X = {"k": k, "reg_weight": 3.0}, interactions(9)
    first = corrected(sparse_ease, params, X, np.where(np.arange(26)[:, None] == 5, 0, X))
    left = np.where(np.arange(26)[:, None] == 5, 0, X)
    grown = np.pad(left, ((0, 2), (0, 2)))
    after = grown.copy()
    after[26, [1, 13, 14]], after[27, [2, 14]] = 1, 2
    B = padded(first.B, 2)
    result = corrected(sparse_ease, params, grown, after, B=B, cache=first.cache)
    assert same_bits(result.B, sparse_ease.fit(sp.csr_matrix(after), params, np.float64))
    again = corrected(sparse_ease, params, after, grown, B=result.B, cache=result.cache)
    assert same_bits(again.B, sparse_ease.fit(sp.csr_matrix(grown), params, np.float64))
    assert not again.B.toarray()[13:].any() and not again.B.toarray()[:, 13:].any()


def test_a_mapping_of_other_interactions_is_refused_and_rounding_is_not():
    X, other = interactions(3, users=80, items=30), interactions(4, users=80, items=30)
    after = X.copy()
    after[7] = 0
    foreign = [
        sparse_ease.fit(sp.csr_matrix(other), PARAMS, np.float64),
        sparse_ease.fit(sp.csr_matrix(X), {**PARAMS, "k": 5}, np.float64),
        sparse_ease.fit(sp.csr_matrix(X), {**PARAMS, "reg_weight": 3.1}, np.float64),
        sp.csr_matrix((30, 30)),
    ]
    for B in foreign:
        with pytest.raises(MappingMismatch, match=r"k = 4, reg_weight = 3.0: the largest difference is"):
            corrected(sparse_ease, PARAMS, X, after, B=B)
    B = sparse_ease.fit(sp.csr_matrix(X), PARAMS, np.float64)
    B.data *= 1 + 1e-14
    result = corrected(sparse_ease, PARAMS, X, after, B=B)
    assert result.notes[0].startswith("B differed from a fit by up to")
    assert same_bits(result.B, sparse_ease.fit(sp.csr_matrix(after), PARAMS, np.float64))


@pytest.mark.parametrize("trace", [0.0, 1e-3])
def test_nothing_to_correct_finds_out_whether_a_mapping_is_that_of_its_interactions(trace):
    """What ``--verify`` asks."""
    X = sp.csr_matrix(interactions(3, users=80, items=30).astype(np.float32))
    B = sparse_ease.fit(X, PARAMS)
    B.data[5] += trace
    fitted = FittedMapping(X, B, PARAMS)
    if trace:
        with pytest.raises(MappingMismatch):
            sparse_ease.correct(fitted, change_between(X, X), 0.0)
    else:
        assert sparse_ease.correct(fitted, change_between(X, X), 0.0).B is B


@pytest.mark.parametrize(
    "params, message",
    [
        ({"k": 0}, "k = 0: must be a whole number of at least 1"),
        ({"k": 2.5}, "k = 2.5: must be a whole number"),
        ({"k": True}, "k = True"),
        ({"reg_weight": 0.0}, "reg_weight = 0.0: must be a number above 0"),
        ({"reg_weight": float("nan")}, "reg_weight = nan"),
        ({"reg_weight": None}, "reg_weight = None"),
    ],
)
def test_settings_out_of_range_are_refused(params, message):
    with pytest.raises(SettingsError, match=message):
        sparse_ease.fit(sp.csr_matrix(interactions(0)), {**PARAMS, **params})


def test_a_penalty_that_rounding_swallows_is_an_error():
    X = np.zeros((6, 4))
    X[1:, 1:] = 1e9  # equal items, beside which the penalty is nothing
    with pytest.raises(np.linalg.LinAlgError, match="positive definite"):
        sparse_ease.fit(sp.csr_matrix(X), {"k": 2, "reg_weight": 1e-3}, np.float64)
    with pytest.raises(UnsolvedError, match="A larger reg_weight is needed"):
        corrected(sparse_ease, {"k": 2, "reg_weight": 1e-3}, X, X * 0, B=sp.csr_matrix((4, 4)))
