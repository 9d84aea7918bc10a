"""Membership inference against hand-computed cases and oracles that share no code, and on real models."""

import numpy as np
import pytest
import scipy.sparse as sp
from sklearn.metrics import roc_auc_score

from recbole_llmd.unlearning import Unlearner
from recbole_llmd.unlearning.evaluation import membership
from tests.helpers.unlearned_matrices import corrected_matrices, half_of, retrained_matrices

FORMATS = [np.asarray, np.asmatrix, sp.csr_matrix, sp.csc_matrix]


def test_negatives_are_new_to_the_user_and_near_in_popularity():
    rng = np.random.default_rng(0)
    known = sp.csr_matrix(rng.random((300, 90)) < np.linspace(0.02, 0.6, 90)[rng.permutation(90)]).astype(np.float32)
    known = known - known.multiply(sp.csr_matrix((np.ones(300), (np.arange(300), np.zeros(300, int))), known.shape))
    known.eliminate_zeros()
    popularity = (known.toarray() > 0).sum(axis=0)
    pick = rng.choice(known.nnz, 400, replace=False)
    users, items = known.tocoo().row[pick], known.tocoo().col[pick]
    negatives = membership.matched_negatives(known, users, items, np.random.default_rng(1))
    for user, item, negative in zip(users, items, negatives, strict=True):
        free = [j for j in range(1, 90) if known[user, j] == 0]
        reach = sorted(abs(popularity[j] - popularity[item]) for j in free)[4]
        assert negative in free and abs(popularity[negative] - popularity[item]) <= reach
    again = membership.matched_negatives(known, users, items, np.random.default_rng(1))
    other = membership.matched_negatives(known, users, items, np.random.default_rng(2))
    times = 1 + (known.tocoo().row < 150)  # some entries stored twice: nobody is more popular for it
    ends = np.append(0, np.cumsum(times))[known.indptr]
    twice = sp.csr_matrix((np.ones(times.sum()), np.repeat(known.indices, times), ends), known.shape)
    assert (negatives == membership.matched_negatives(twice, users, items, np.random.default_rng(1))).all()
    assert (negatives == again).all() and (negatives != other).mean() > 0.3


def test_negatives_are_drawn_among_all_that_are_equally_near():
    known = np.zeros((40, 32))
    known[np.arange(30), np.arange(1, 31)] = 1  # thirty items of popularity one
    known[:, 31] = 1
    drawn = membership.matched_negatives(
        sp.csr_matrix(known), np.full(2000, 3), np.full(2000, 4), np.random.default_rng(0)
    )
    assert set(drawn) == set(range(1, 31)) - {4} and np.bincount(drawn).max() < 150


def test_negatives_where_hardly_any_is_left():
    known = sp.csr_matrix(np.array([[0, 1, 1, 1], [0, 1, 0, 1], [0, 1, 0, 0]]))
    negatives = membership.matched_negatives(known, [0, 1, 0, 2], [1, 3, 2, 1], np.random.default_rng(0))
    assert negatives[:3].tolist() == [-1, 2, -1] and negatives[3] in (2, 3)
    zero = sp.csr_matrix((np.array([1.0, 1.0, 0.0]), np.array([1, 2, 3]), np.array([0, 3])), shape=(1, 4))
    assert membership.matched_negatives(zero, [0], [1], np.random.default_rng(0)).tolist() == [3]
    assert membership.matched_negatives(known, [], [], np.random.default_rng(0)).tolist() == []


@pytest.mark.parametrize("of_B", FORMATS)
def test_pair_scores_by_hand(of_B):
    X = sp.csr_matrix(np.array([[0.0, 2.0, 1.0], [0.0, 0.0, 0.0], [0.0, 0.0, 1.0]]))
    B = of_B(np.array([[9.0, 9.0, 9.0], [9.0, 0.5, 3.0], [9.0, 4.0, 7.0]]))
    users, items = np.array([0, 0, 1, 2]), np.array([1, 2, 1, 1])
    assert membership.served_scores(X, B, users, items).tolist() == [2 * 0.5 + 4, 2 * 3 + 7, 0, 4]
    assert membership.probe_scores(X, B, users, items).tolist() == [4, 2 * 3, 0, 4]
    assert X.nnz == 3
    with pytest.raises(ValueError, match="-1"):
        membership.served_scores(X, B, [0], [-1])


@pytest.mark.parametrize("of_B", FORMATS)
def test_pair_scores_are_the_product(of_B, monkeypatch):
    monkeypatch.setattr(membership, "PAIRS", 7)
    rng = np.random.default_rng(5)
    X = (rng.random((30, 20)) < 0.3) * rng.integers(1, 4, (30, 20)).astype(float)
    B = rng.standard_normal((20, 20)) * (rng.random((20, 20)) < 0.5)
    users, items = rng.integers(0, 30, 45), rng.integers(0, 20, 45)
    without = X[users].copy()
    without[np.arange(45), items] = 0
    served = membership.served_scores(sp.csr_matrix(X), of_B(B), users, items)
    probed = membership.probe_scores(sp.csr_matrix(X), of_B(B), users, items)
    np.testing.assert_allclose(served, (X @ B)[users, items], atol=1e-12)
    np.testing.assert_allclose(probed, (without @ B)[np.arange(45), items], atol=1e-12)


def test_membership_auc():
    assert membership.membership_auc([3, 1, 2], [2, 0]) == (2 + 1 + 1.5) / 6
    assert membership.membership_auc([5.0], [1.0, 2.0]) == 1 and membership.membership_auc([0, 0], [0, 0, 0]) == 0.5
    assert membership.membership_auc([], [1.0]) is None and membership.membership_auc([1.0], []) is None
    rng = np.random.default_rng(0)
    members, others = rng.integers(0, 12, 70) / 4, rng.integers(0, 9, 110) / 4
    expected = roc_auc_score(np.repeat([1, 0], [70, 110]), np.append(members, others))
    assert membership.membership_auc(members, others) == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("name, served_margin, probe_margin", [("EASE", 0.15, 0.15), ("ItemKNN", 0.06, 0.04)])
def test_a_membership_attack_finds_what_a_model_remembers(trained, name, served_margin, probe_margin):
    config, loaders, model = trained(name)
    dataset = loaders[0].dataset
    known = sum(loader.dataset.inter_matrix(form="csr") for loader in loaders)
    X = Unlearner(model, dataset).X.copy()
    users, items = half_of(X)
    negatives = membership.matched_negatives(known, users, items, np.random.default_rng(0))
    assert (negatives > 0).all()

    def attack(X_of_arm, B):
        scores = ([membership.served_scores(X_of_arm, B, users, i) for i in (items, negatives)],
                  [membership.probe_scores(X, B, users, i) for i in (items, negatives)])  # fmt: skip
        return [membership.membership_auc(*pair) for pair in scores]

    served, probe = attack(*retrained_matrices(name, config, dataset, users, items))
    no_op_served, no_op_probe = attack(*corrected_matrices(model, dataset, "none", users, items))
    assert no_op_served > served + served_margin and no_op_probe > probe + probe_margin
    _, x_only_probe = attack(*corrected_matrices(model, dataset, "interaction", users, items))
    assert x_only_probe > probe + probe_margin
    exact = attack(*corrected_matrices(model, dataset, "mapping", users, items))
    # EASE is float32: two scores may change places. ItemKNN's counts are whole numbers.
    assert exact == pytest.approx([served, probe], abs=1e-3 if name == "EASE" else 0)
