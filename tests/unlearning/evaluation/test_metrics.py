"""The figures of unlearning against hand-computed cases and oracles that share no code, and on real models."""

import math
import tracemalloc

import numpy as np
import pytest
import scipy.sparse as sp

from recbole_llmd.unlearning import Unlearner
from recbole_llmd.unlearning.evaluation import metrics
from recbole_llmd.unlearning.mapping.correction import Correction
from tests.helpers.mapping_models import dense
from tests.helpers.unlearned_matrices import corrected_matrices, half_of, retrained_matrices

R = np.array([[3.0, 0.0, 0.0], [0.0, 4.0, 0.0]])
A = np.array([[3.0, 0.0, 0.0], [0.0, 4.0, -2.5]])
FORMATS = [np.asarray, np.asmatrix, sp.csr_matrix, sp.csc_matrix, sp.coo_array]


def random_case(seed, users=40, items=25, masked=0.3):
    """Scores with many ties, and a mask with the padding; user 0 has nothing to choose from, user 1 two items."""
    rng = np.random.default_rng(seed)
    scores, mask = rng.integers(-4, 5, (users, items)) / 2, rng.random((users, items)) < masked
    mask[:, 0] = mask[0] = mask[1] = True
    mask[1, [3, 7]] = False
    return scores, mask


# --- distances --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("of_reference", FORMATS)
@pytest.mark.parametrize("of_A", FORMATS)
def test_distances_by_hand(of_A, of_reference):
    assert metrics.relative_frobenius(of_A(A), of_reference(R)) == 2.5 / 5
    assert metrics.max_abs(of_A(A), of_reference(R)) == 2.5
    assert metrics.relative_frobenius(of_A(R), of_reference(R)) == metrics.max_abs(of_A(R), of_reference(R)) == 0
    nothing = of_reference(np.zeros((2, 3)))
    assert metrics.relative_frobenius(of_A(A), nothing) == math.inf
    assert metrics.relative_frobenius(of_A(np.zeros((2, 3))), nothing) == 0
    assert metrics.max_abs(of_A(A), nothing) == 4


def test_distances_of_many_blocks_are_numpys(monkeypatch):
    monkeypatch.setattr(metrics, "BLOCK", 100)
    rng = np.random.default_rng(0)
    a, b = (rng.standard_normal((53, 17)).astype(np.float32) * (rng.random((53, 17)) < 0.4) for _ in range(2))
    exact = np.linalg.norm(a.astype(float) - b) / np.linalg.norm(b.astype(float))
    for left in (a, sp.csr_matrix(a)):
        for right in (b, sp.csc_matrix(b)):
            assert metrics.relative_frobenius(left, right) == pytest.approx(exact, rel=1e-12)
            assert metrics.max_abs(left, right) == np.abs(a.astype(float) - b).max()


def test_distances_add_repeated_entries_and_leave_their_arguments_alone():
    twice = sp.csr_matrix((np.array([1.0, 2.0]), np.array([1, 1]), np.array([0, 2])), shape=(1, 2))
    assert metrics.relative_frobenius(sp.csr_matrix([[0.0, 6.0]]), twice) == 1
    assert twice.nnz == 2


def test_distances_keep_nan_and_refuse_other_shapes():
    broken = A.copy()
    broken[0, 1] = np.nan
    assert math.isnan(metrics.relative_frobenius(broken, R)) and math.isnan(metrics.max_abs(broken, R))
    with pytest.raises(ValueError, match="shapes"):
        metrics.max_abs(A, R[:1])  # NumPy would broadcast


@pytest.mark.parametrize("figure", [metrics.relative_frobenius, metrics.max_abs])
def test_distances_copy_no_matrix_whole(figure, monkeypatch):
    monkeypatch.setattr(metrics, "BLOCK", 10_000)
    large = np.ones((1000, 1000), np.float32)
    sparse = sp.identity(100_000, format="csr")  # dense: 80 GB
    tracemalloc.start()
    figure(large, large)
    peak = tracemalloc.get_traced_memory()[1]
    assert figure(sparse, sparse) == 0
    tracemalloc.stop()
    assert peak < large.nbytes / 2


# --- top lists --------------------------------------------------------------------------------------------------------


def test_top_k_by_hand():
    scores = np.array([[9.0, 1.0, 5.0, 5.0, 7.0], [9.0, 2.0, 2.0, 2.0, 2.0], [1.0, 2.0, 3.0, 4.0, 5.0]])
    mask = np.array([[1, 0, 0, 0, 0], [1, 0, 0, 0, 0], [1, 1, 1, 0, 1]], bool)
    assert metrics.top_k(scores, 2, mask).tolist() == [[4, 2], [1, 2], [3, -1]]
    assert metrics.top_k(scores, 6, mask).tolist() == [
        [4, 2, 3, 1, -1, -1],
        [1, 2, 3, 4, -1, -1],
        [3, -1, -1, -1, -1, -1],
    ]


@pytest.mark.parametrize("k", [1, 3, 10, 25, 40])
@pytest.mark.parametrize("dtype", [np.float64, np.float32, np.int64])
def test_top_k_is_sorting(k, dtype, monkeypatch):
    monkeypatch.setattr(metrics, "BLOCK", 130)
    scores, mask = random_case(k)
    scores = (scores * 2).astype(dtype)
    if dtype is not np.int64:
        scores[5, 4:9], scores[6] = -np.inf, -np.inf  # a score of its own, not the mask
    expected = []
    for row, masked in zip(scores, mask, strict=True):
        items = sorted((i for i in range(len(row)) if not masked[i]), key=lambda i: (-row[i], i))
        expected.append((items + [-1] * k)[:k])
    assert metrics.top_k(scores, k, mask).tolist() == expected


def test_top_k_refuses_nan():
    with pytest.raises(ValueError, match="NaN"):
        metrics.top_k(np.array([[1.0, np.nan]]), 1, np.zeros((1, 2), bool))
    assert metrics.top_k(np.array([[1.0, np.nan]]), 1, np.array([[False, True]])).tolist() == [[0]]


def test_overlap_by_hand():
    top = np.array([[1, 2, 3, 4], [5, 6, -1, -1], [-1] * 4, [7, -1, -1, -1]])
    reference = np.array([[4, 9, 1, 8], [6, 5, -1, -1], [-1] * 4, [7, 8, -1, -1]])
    assert metrics.overlap(top, reference) == pytest.approx((2 / 4 + 2 / 2 + 1 / 2) / 3)
    assert metrics.overlap(top[2:3], reference[2:3]) is None


def test_overlap_is_counting():
    (a, mask), (b, _) = random_case(1), random_case(2)
    tops = metrics.top_k(a, 6, mask), metrics.top_k(b, 6, mask)
    shares = [len(set(x) & set(y)) / 6 for x, y in zip(*(top[2:].tolist() for top in tops), strict=True)]
    assert metrics.overlap(*tops) == pytest.approx(
        (sum(shares) + 1) / (len(shares) + 1)
    )  # user 1: both have the same two


def test_forget_recall_by_hand():
    top = np.array([[1, 2], [3, -1]])
    assert metrics.forget_recall(top, np.array([0, 0, 1, 1]), np.array([1, 3, 3, 1])) == 0.5
    assert metrics.forget_recall(top, [1, 1, 1, 0], [3, 1, 2, 3]) == 0.25
    assert metrics.forget_recall(top, np.array([], int), np.array([], int)) is None


def test_exposure_by_hand():
    top = np.array([[1, 2, 3, 4], [5, 1, -1, -1], [-1] * 4])
    assert metrics.exposure(top, [1, 3, 4, 99]) == (3 / 4 + 1 / 2) / 2
    assert metrics.exposure(top, []) == 0
    assert metrics.exposure(top, [-1, 5]) == (0 + 1 / 2) / 2  # the filling is no item
    assert metrics.exposure(top[2:], [1]) is None


def test_target_hit_rate_by_hand():
    top = np.array([[1, 2], [2, 3], [4, -1]])
    eligible = np.ones((3, 6), bool)
    assert metrics.target_hit_rate(top, [2, 4], eligible) == 3 / 6
    eligible[0, 4] = eligible[2, 4] = False  # one that was missed, one that was hit
    assert metrics.target_hit_rate(top, np.array([2, 4]), eligible) == 2 / 4
    assert metrics.target_hit_rate(top, [5, 2], eligible) == 2 / 6
    assert metrics.target_hit_rate(top, [2], np.zeros((3, 6), bool)) is None
    assert metrics.target_hit_rate(top, [], eligible) is None


def test_rank_biased_overlap_by_hand():
    """Depth 1: nothing in common, depth 2: both; the second user's list of one item is complete; the third has none."""
    top = np.array([[1, 2], [5, -1], [-1, -1]])
    reference = np.array([[2, 1], [5, -1], [-1, -1]])
    first = (0.9 * 1.0) / (1 + 0.9)
    assert metrics.rank_biased_overlap(top, reference) == pytest.approx((first + 1) / 2)
    assert metrics.rank_biased_overlap(top[:1], reference[:1], 0.25) == pytest.approx(0.25 / 1.25)
    assert metrics.rank_biased_overlap(top[2:], reference[2:]) is None
    assert metrics.rank_biased_overlap(np.array([[1, 2]]), np.array([[1, -1]])) == pytest.approx((1 + 0.9 / 2) / 1.9)


@pytest.mark.parametrize("persistence", [0.5, 0.9])
def test_rank_biased_overlap_is_sets_at_every_depth(persistence):
    (a, mask), (b, _) = random_case(3), random_case(4)
    tops = metrics.top_k(a, 7, mask), metrics.top_k(b, 7, mask)

    def naive(x, y):
        x, y = ([item for item in ranking if item >= 0] for ranking in (x, y))
        depths = range(1, max(len(x), len(y)) + 1)
        agreement = [persistence ** (d - 1) * len(set(x[:d]) & set(y[:d])) / d for d in depths]
        return sum(agreement) / sum(persistence ** (d - 1) for d in depths)

    expected = np.mean([naive(x, y) for x, y in zip(*(top[1:].tolist() for top in tops), strict=True)])  # user 0: none
    assert metrics.rank_biased_overlap(*tops, persistence) == pytest.approx(expected, rel=1e-12)
    assert metrics.rank_biased_overlap(tops[0], tops[0]) == pytest.approx(1)


def test_rank_biased_overlap_sees_an_exchange_at_the_top_more_than_one_below():
    reference = np.arange(1, 11)[None]
    above, below = reference.copy(), reference.copy()
    above[0, [0, 1]], below[0, [8, 9]] = above[0, [1, 0]], below[0, [9, 8]]
    assert metrics.overlap(above, reference) == metrics.overlap(below, reference) == 1
    assert metrics.rank_biased_overlap(above, reference) < metrics.rank_biased_overlap(below, reference) < 1


@pytest.mark.parametrize("of_B", FORMATS[:-1])
def test_column_change_is_numpys(of_B, monkeypatch):
    monkeypatch.setattr(metrics, "BLOCK", 40)
    rng = np.random.default_rng(0)
    a, b = (rng.standard_normal((13, 13)) * (rng.random((13, 13)) < 0.4) for _ in range(2))
    np.testing.assert_allclose(metrics.column_change(of_B(a), of_B(b)), np.linalg.norm(a - b, axis=0), rtol=1e-12)


def test_the_more_active_half():
    assert metrics.more_active([4, 9, 1, 9]).tolist() == [False, True, False, True]
    assert metrics.more_active([2, 2, 2]).tolist() == [False, True, True]  # the odd one is of the active
    assert metrics.more_active([]).tolist() == []


# --- on real models ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["EASE", "ItemKNN"])
def test_correcting_X_alone_is_visible(trained, name, monkeypatch):
    config, (train, _, _), model = trained(name)
    users, items = half_of(Unlearner(model, train.dataset).X)
    reference_X, reference_B = retrained_matrices(name, config, train.dataset, users, items)
    history = dense(reference_X) > 0
    history[:, 0] = True

    def figures(X, B):
        scores, reference = np.asarray(X @ dense(B)), np.asarray(reference_X @ dense(reference_B))
        tops = [metrics.top_k(S[1:], 10, history[1:]) for S in (scores, reference)]
        return {
            "X": abs(X - reference_X).sum(),
            "B": metrics.relative_frobenius(B, reference_B),
            "scores": metrics.relative_frobenius(scores, reference),
            "overlap": metrics.overlap(*tops),
            "rbo": metrics.rank_biased_overlap(*tops),
        }

    right = figures(*corrected_matrices(model, train.dataset, "mapping", users, items))
    assert right["X"] == 0 and right["B"] < 1e-5 and right["scores"] < 1e-5
    assert right["overlap"] > 0.999 and right["rbo"] > 0.999

    mapping = Unlearner(model, train.dataset).mapping
    monkeypatch.setattr(mapping, "correct", lambda state, change, tolerance: Correction(state.B, "planted bug"))
    wrong = figures(*corrected_matrices(model, train.dataset, "mapping", users, items))
    assert wrong["X"] == 0  # what looks at X alone finds nothing
    assert wrong["B"] > 0.5 and wrong["scores"] > 0.3
    assert wrong["overlap"] < 0.9 and wrong["rbo"] < 0.9
