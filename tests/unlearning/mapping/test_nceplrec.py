"""NCEPLRec's corrections beside a dense decomposition by equations written out, in float64."""

import copy
import pickle

import numpy as np
import pytest
import scipy.sparse as sp
import torch
from hypothesis import given
from recbole.model.general_recommender import NCEPLRec as RecBoles
from recbole.utils import get_model, get_trainer
from sklearn.utils.extmath import randomized_svd

from recbole_llmd.errors import MappingMismatch, UnsolvedError
from recbole_llmd.unlearning import Unlearner
from recbole_llmd.unlearning.mapping import nceplrec
from recbole_llmd.unlearning.mapping.correction import padded
from recbole_llmd.unlearning.mapping.low_rank_matrix import LowRankMatrix
from tests.helpers.engines import engine_of
from tests.helpers.mapping_cases import NCE, changes, corrected, interactions, quick
from tests.helpers.mapping_models import dense


def by_svd(X, beta=1.0, rank=6, reg_weight=2.0):
    """B of the users who are there, entry by entry of D; NumPy's decomposition, and an inverse."""
    X = X[X.any(axis=1)]
    n, sums = len(X) + 1, X.sum(axis=0)
    D = np.zeros(X.shape)
    for user, item in zip(*X.nonzero()):
        D[user, item] = max(np.log(n / sums[item] ** beta), 0.0)
    _, sigma, Vt = np.linalg.svd(D, full_matrices=False)
    L = Vt[:rank].T @ np.diag(np.sqrt(sigma[:rank]))
    Q = X @ L
    return L @ np.linalg.inv(Q.T @ Q + reg_weight * np.eye(L.shape[1])) @ Q.T @ X


def gap_of(X, rank):
    D = nceplrec.weighted(sp.csr_matrix(X), 1.0).toarray()
    squares = np.append(np.linalg.svd(D, compute_uv=False) ** 2, np.zeros(rank + 1))
    return (squares[rank - 1] - squares[rank]) / squares[0]


@pytest.mark.parametrize("more", [{}, {"beta": 1.4}, {"beta": 0.5}, {"rank": 1}, {"rank": 40}, {"reg_weight": 0.1}])
@given(changes(highest=2))
@quick
def test_a_corrected_mapping_is_a_dense_decomposition_of_what_is_left(more, change):
    before, after = change
    params = {**NCE, **more}
    result = corrected(nceplrec, params, before, after)
    assert 0 <= result.residual < result.tolerance == 1e-12
    if gap_of(after, params["rank"]) > 1e-7 or params["rank"] == 40:
        assert np.abs(dense(result.B) - by_svd(after, **params)).max() < 1e-7
    nobody = ~after.any(axis=0)
    assert not dense(result.B)[nobody].any() and not dense(result.B)[:, nobody].any()
    refitted = nceplrec.fit(sp.csr_matrix(after), params)
    assert np.array_equal(result.B.left, refitted.left) and np.array_equal(result.B.right, refitted.right)


def test_a_user_who_leaves_is_not_counted():
    X = interactions(3, users=40, items=20)
    left = X.copy()
    left[[4, 9, 11]] = 0
    B = corrected(nceplrec, NCE, X, left).B
    assert np.abs(dense(B) - by_svd(np.delete(X, [4, 9, 11], axis=0))).max() < 1e-10
    assert np.abs(dense(nceplrec.fit(sp.csr_matrix(X), NCE)) - dense(B)).max() > 1e-2


@pytest.fixture
def lanczos(monkeypatch):
    """Iterations decompose the small cases of the tests, too; gives the number of dense decompositions."""
    monkeypatch.setattr(nceplrec, "SMALL", 5)
    monkeypatch.setattr(nceplrec, "LANCZOS", 0)
    calls, original = [], nceplrec._dense
    monkeypatch.setattr(nceplrec, "_dense", lambda D: calls.append(D.shape) or original(D))
    return calls


@pytest.mark.parametrize("seed", range(5))
def test_lanczos_iterations_find_the_same(lanczos, seed):
    X = interactions(seed, users=90, items=60)
    after = X.copy()
    after[[5, 7]] = 0
    result = corrected(nceplrec, NCE, X, after)
    assert not lanczos and result.residual < 1e-13 and gap_of(after, 6) > 1e-5
    assert np.abs(dense(result.B) - by_svd(after)).max() < 1e-9
    assert nceplrec.error_of(result.B, sp.csr_matrix(after), NCE, sp.csr_matrix(X[[5, 7]])) < 1e-13


def test_equal_singular_values_are_all_found(lanczos):
    """Four groups of users alike: every singular value four times. A vector's iterations see one of each."""
    X = np.kron(np.eye(4), interactions(1, users=20, items=12)[1:, 1:])
    params = {**NCE, "rank": 8}  # two values, four times each
    assert gap_of(X, 8) > 1e-3
    assert np.abs(dense(nceplrec.fit(sp.csr_matrix(X), params)) - by_svd(X, **params)).max() < 1e-9


def test_a_truncation_that_the_interactions_do_not_determine_is_named():
    X = np.kron(np.eye(4), interactions(1, users=20, items=12)[1:, 1:])
    params = {**NCE, "rank": 6}  # half of four equal ones
    after = X.copy()
    after[0] = 0
    after[19], after[38], after[57] = 0, 0, 0
    result = corrected(nceplrec, params, X, after)
    assert "the gap behind singular value 6 is" in result.notes[-1] and result.residual < result.tolerance
    assert np.array_equal(dense(result.B), dense(nceplrec.fit(sp.csr_matrix(after), params)))


@pytest.mark.parametrize("rank", [6, 40])
def test_a_mapping_that_still_knows_a_user_fails_its_own_equations(rank):
    params = {**NCE, "rank": rank}
    for seed in range(5):
        X = interactions(seed, users=60, items=30)
        B = nceplrec.fit(sp.csr_matrix(X), params)
        assert nceplrec.error_of(B, sp.csr_matrix(X), params, sp.csr_matrix((0, 30))) < 1e-13
        for user in (1, 2, 3):
            left = X.copy()
            left[user] = 0
            assert nceplrec.error_of(B, sp.csr_matrix(left), params, sp.csr_matrix(X[[user]])) > 1e-5
            # with W of what is left, but V of before
            half = nceplrec._normal_equations(sp.csr_matrix(left), B.left, 2.0)
            half = LowRankMatrix(B.left, np.linalg.solve(*half))
            assert nceplrec.ridge_error(half, sp.csr_matrix(left), params) < 1e-14
            assert nceplrec.error_of(half, sp.csr_matrix(left), params, sp.csr_matrix(X[[user]])) > 1e-5


def test_a_leading_vector_that_is_left_out_is_found():
    X = sp.csr_matrix(interactions(0, users=60, items=30))
    whole = nceplrec.fit(X, {**NCE, "rank": 7})
    for missing in (0, 3, 5):
        left = np.delete(whole.left, missing, axis=1)
        B = LowRankMatrix(left, np.linalg.solve(*nceplrec._normal_equations(X, left, 2.0)))
        assert max(nceplrec.ridge_error(B, X, NCE), nceplrec.eigen_residual(B, X, NCE)) < 1e-13
        assert nceplrec.error_of(B, X, NCE, sp.csr_matrix((0, 30))) > 1e-3


def test_a_mapping_of_other_interactions_is_refused():
    X = interactions(0, users=200, items=40)
    B = nceplrec.fit(sp.csr_matrix(X), NCE)
    other = X.copy()
    other[7, np.flatnonzero(X[7])[0]] = 0  # one pair of them all
    after = other.copy()
    after[9] = 0
    for before, params in ((other, NCE), (X, {**NCE, "reg_weight": 2.001})):
        with pytest.raises(MappingMismatch, match="W has a backward error"):
            corrected(nceplrec, params, before, after, B=B)
    known = corrected(nceplrec, NCE, other, after, B=B, cache={"exact_for": other.shape})
    assert np.array_equal(dense(known.B), dense(nceplrec.fit(sp.csr_matrix(after), NCE)))  # nothing comes from B


def test_what_cannot_be_solved_is_an_error():
    X = interactions(0)
    with pytest.raises(UnsolvedError, match=r"W cannot be fitted.*A larger reg_weight"):
        B, known = nceplrec.fit(sp.csr_matrix(X), NCE), {"exact_for": X.shape}
        corrected(nceplrec, {**NCE, "reg_weight": -1e9}, X, interactions(1), B=B, cache=known)
    with pytest.raises(UnsolvedError, match=r"residual of .* after a fit \(tolerance 1e-30\)"):
        corrected(nceplrec, NCE, X, interactions(1), tolerance=1e-30)


def test_the_factors_stand_for_their_product():
    X = interactions(0)
    B = nceplrec.fit(sp.csr_matrix(X), NCE)
    expected = by_svd(X)
    for rows in (X, sp.csr_matrix(X), sp.csc_matrix(X)):
        assert np.abs(rows @ B - X @ expected).max() < 1e-9
    for columns in (5, np.array([0, 3]), slice(2, 9)):
        assert np.abs(B[:, columns] - expected[:, columns]).max() < 1e-9
    with pytest.raises(TypeError, match="only columns"):
        B[3]
    assert np.array_equal(dense(padded(B, 2)), np.pad(dense(B), (0, 2)))
    left, right = pickle.loads(pickle.dumps(B))  # of NumPy alone
    assert type(left) is type(right) is np.ndarray and np.array_equal(left @ right, dense(B))
    assert copy.copy(B) is copy.deepcopy(B) is B


# --- RecBole's class --------------------------------------------------------------------------------------------------


def test_b_is_what_recbole_multiplies(trained):
    _, (train, _, _), model = trained("NCEPLRec")
    Q, W = model.user_embeddings.numpy(), model.item_embeddings.numpy()
    assert Q.shape[1] == 12 and np.array_equal(model.interaction_matrix @ model.item_similarity.left, Q)
    assert np.array_equal(model.item_similarity.right, W)
    engine = Unlearner(model, train.dataset)
    before = dense(engine.B)
    receipt = engine.forget_users([3], ids="internal")
    assert any("V was off the singular vectors" in note for note in receipt.notes)
    assert not any("was off" in note for note in engine.forget_users([4], ids="internal").notes)
    assert np.abs(before - dense(engine.B)).max() > 1e-4
    assert np.abs(dense(engine.B) - by_svd(engine.X.toarray(), rank=12)).max() < 1e-6


def test_it_is_trained_as_plain_recbole_trains_it(trained):
    config, (train, _, _), model = trained("NCEPLRec")
    plain = RecBoles(config, train.dataset)
    assert isinstance(model, RecBoles) and type(plain) is RecBoles is not type(model)
    for name in ("user_embeddings", "item_embeddings"):
        assert np.array_equal(getattr(plain, name).numpy(), getattr(model, name).numpy())


def test_plain_recbole_reads_what_was_saved(trained, workdir):
    engine = engine_of(trained, "NCEPLRec")
    plain = RecBoles(engine.config, engine.dataset)
    engine.forget_users([3, 4], ids="internal")
    engine.save("model.pth")
    stored = torch.load("model.pth", weights_only=False)["other_parameter"]
    assert b"recbole_llmd" not in pickle.dumps(stored)
    plain.load_other_parameter(stored)
    users = {plain.USER_ID: torch.arange(plain.n_users)}
    assert torch.equal(plain.full_sort_predict(users), engine.model.full_sort_predict(users))
    assert not plain.full_sort_predict({plain.USER_ID: torch.tensor([3, 4])}).any()


def test_a_checkpoint_is_read_without_training(trained, monkeypatch):
    config, _, model = trained("NCEPLRec")
    trainer = get_trainer(config["MODEL_TYPE"], config["model"])(config, model)
    trainer._save_checkpoint(0, verbose=False)
    shapes = []

    def decomposed(D, **more):
        shapes.append(D.shape)
        return randomized_svd(D, **more)

    monkeypatch.setitem(RecBoles.__init__.__globals__, "randomized_svd", decomposed)
    engine = Unlearner.from_checkpoint(trainer.saved_model_file)
    assert shapes == [(1, 1)] and type(engine.model) is get_model("NCEPLRec")
    assert np.array_equal(dense(engine.B), dense(model.item_similarity))
