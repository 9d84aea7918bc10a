"""What the arms are measured over: who is served, and who keeps what others forgot."""

import numpy as np
import scipy.sparse as sp

from recbole_llmd.unlearning.evaluation.evaluation_set import EvaluationSet, draw_evaluation_set, without_pairs
from recbole_llmd.unlearning.evaluation.membership import keepers


def test_users_who_keep_nothing_are_left_out():
    X = sp.csr_matrix(np.array([[0, 0, 0], [0, 1, 1], [0, 1, 0], [0, 0, 0]], np.float32))
    forgotten = np.array([2]), np.array([1])
    pair = np.array([-1])
    measured = EvaluationSet(np.arange(1, 4), np.arange(1, 4), X, X, forgotten, pair, pair, np.array([], int))
    assert measured.served(X).users.tolist() == [1, 2]  # 3 never had anything in the training data
    assert measured.served(without_pairs(X, forgotten)).users.tolist() == [1]
    assert measured.users.tolist() == [1, 2, 3] and measured.served(X).tested.tolist() == [1, 2, 3]


def test_without_pairs_takes_out_those_alone():
    X = sp.csr_matrix(np.array([[0, 2.0, 1], [0, 3, 0], [0, 0, 4]]))
    left = without_pairs(X, (np.array([0, 1, 0]), np.array([1, 1, 1])))
    assert left.toarray().tolist() == [[0, 0, 1], [0, 0, 0], [0, 0, 4]] and left.nnz == 2 and X.nnz == 4


def test_keepers_have_the_item_and_are_drawn_among_all_who_do():
    rng = np.random.default_rng(0)
    retained = sp.csr_matrix(rng.random((30, 6)) < 0.3)
    items = rng.integers(0, 6, 3000)
    drawn = keepers(retained, items, np.random.default_rng(1))
    assert all(retained[user, item] for user, item in zip(drawn, items, strict=True))
    for item in range(6):
        assert set(drawn[items == item]) == set(retained[:, [item]].nonzero()[0])
    nobody = sp.csr_matrix((3, 2))
    assert keepers(nobody, [1, 0], np.random.default_rng(0)).tolist() == [-1, -1]


def test_comparisons_are_pairs_of_the_same_items_that_are_still_there(trained):
    _, (_, _, test), model = trained("EASE")
    X = model.interaction_matrix
    owners, items = X.nonzero()
    chosen = np.isin(owners, [1, 2, 3, 4])
    forgotten = owners[chosen].astype(np.int64), items[chosen].astype(np.int64)
    measured = draw_evaluation_set(test, X, forgotten, seed=2)
    (users, asked), (others, kept) = measured.comparisons(requested=len(forgotten[0]))
    assert len(users) > 5 and (asked == kept).all()
    assert set(zip(users, asked)) <= set(zip(*forgotten))
    assert set(zip(others, kept)) <= set(zip(owners, items)) - set(zip(*forgotten))
    assert set(measured.comparisons(requested=2)[0][0]) <= set(forgotten[0][:2])
