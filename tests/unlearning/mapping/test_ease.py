"""EASE's correction against the inverse, and what corrections cost."""

import pickle

import numpy as np
import pytest
import scipy.sparse as sp
from hypothesis import given

from recbole_llmd.errors import MappingMismatch, UnsolvedError
from recbole_llmd.unlearning.mapping import cost_model, ease
from recbole_llmd.unlearning.mapping.corrected_matrix import CorrectedMatrix
from recbole_llmd.unlearning.mapping.correction import FittedMapping
from tests.helpers.mapping_cases import EASE, change_between, changes, corrected, interactions, quick
from tests.helpers.mapping_models import dense


def ease_by_inverse(X, weight):
    P = np.linalg.inv(X.T @ X + weight * np.eye(X.shape[1]))
    B = -P / np.diag(P)
    np.fill_diagonal(B, 0)
    return B


@pytest.mark.parametrize("dtype, allowed", [(np.float64, 1e-9), (np.float32, 1e-4)])
@given(changes(highest=3))
@quick
def test_ease_is_the_inverse_after_any_change(dtype, allowed, change):
    before, after = change
    expected = ease_by_inverse(after, EASE["reg_weight"])
    result = corrected(ease, EASE, before, after, dtype=dtype, B=ease_by_inverse(before, 3.0).astype(dtype))
    assert np.linalg.norm(dense(result.B) - expected) <= allowed * np.linalg.norm(expected)
    assert result.B.dtype == dtype
    fitted = ease.fit(sp.csr_matrix(after), EASE, dtype)
    assert np.linalg.norm(fitted - expected) <= allowed * np.linalg.norm(expected)


@given(changes(highest=2))
@quick
def test_the_factors_of_ease_make_up_the_change_of_the_gram_matrix(change):
    before, after = change
    X = sp.csr_matrix(before)
    factors, signature = ease.low_rank(change_between(X, sp.csr_matrix(after)), X)
    assert np.allclose(signature @ signature, np.eye(len(signature)))
    assert np.allclose(factors.T @ (signature @ factors.toarray()), after.T @ after - before.T @ before, atol=1e-12)


def test_ease_forgets_a_popular_item_at_rank_two():
    before = interactions(0, users=200, items=40)
    after = before.copy()
    after[:, 1] = 0
    result = corrected(ease, EASE, before, after)
    assert result.method == "low-rank update" and result.estimates["rank"] == 2


def test_ease_leaves_what_it_is_given_and_remembers_the_diagonal(monkeypatch):
    before = interactions(1)
    B = ease_by_inverse(before, 3.0)
    untouched, X, cache = B.copy(), before, {}
    monkeypatch.setattr(ease, "PENDING", 3)
    ranks, earlier = [], []
    for user in range(1, 8):
        after = X.copy()
        after[user] = 0
        if isinstance(B, CorrectedMatrix):
            earlier.append((B, B.folded()))
        result = corrected(ease, EASE, X, after, B=B, cache=cache)
        ranks.append(result.B.rank if isinstance(result.B, CorrectedMatrix) else "written")
        assert np.abs(dense(result.B) - ease_by_inverse(after, 3.0)).max() < 1e-12
        X, B, cache = after, result.B, result.cache
        monkeypatch.setattr(ease, "inverse_diagonal", None)  # not needed any more
    assert ranks == [1, 2, 3, "written", 1, 2, 3]
    assert all(np.array_equal(matrix.folded(), content) for matrix, content in earlier)
    assert np.array_equal(untouched, ease_by_inverse(before, 3.0))


@pytest.mark.parametrize("dtype, allowed", [(np.float64, 1e-12), (np.float32, 1e-5)])
def test_scores_and_columns_are_those_of_the_matrix_written(always_update, dtype, allowed):
    before, _ = world()
    after = before.copy()
    after[-1] = after[7] = 0
    after[9, 5] = 1 - after[9, 5]
    B = corrected(ease, EASE, before, after, dtype=dtype).B
    assert len(B.alone) == 3 and B.rank == 4
    X, expected = sp.csr_matrix(after.astype(dtype)), ease_by_inverse(after, 3.0)
    history = X[[3, 9, 20]]
    for rows in (history, history.toarray()):
        assert np.abs(rows @ B - rows @ expected).max() < allowed
    assert np.abs((sp.csr_matrix(np.eye(40, dtype=dtype)) @ B).diagonal()).max() < allowed
    for columns in (5, np.array([0, 1, 5, 17]), slice(2, 9)):
        assert np.abs(B[:, columns] - expected[:, columns]).max() < allowed
        assert np.array_equal(B[:, columns] == 0, expected[:, columns] == 0)
    assert np.abs(B[3] - expected[3]).max() < allowed and B[2, 5] == 0
    assert np.array_equal(pickle.loads(pickle.dumps(B)), B.folded())


def test_two_models_that_went_apart_do_not_share_what_waits():
    before = interactions(1)
    first, left, right = before.copy(), before.copy(), before.copy()
    first[3] = left[[3, 4]] = right[[3, 5]] = 0
    shared = corrected(ease, EASE, before, first)
    apart = [corrected(ease, EASE, first, X, B=shared.B, cache=shared.cache) for X in (left, right)]
    for X, result in zip((left, right), apart):
        assert result.B.rank == 2 and np.abs(dense(result.B) - ease_by_inverse(X, 3.0)).max() < 1e-12
    assert np.abs(dense(shared.B) - ease_by_inverse(first, 3.0)).max() < 1e-12


def test_ease_updates_a_grown_model_without_computing_the_diagonal_anew(monkeypatch):
    X = interactions(1)
    grown = np.pad(X, ((0, 1), (0, 2)))
    after = grown.copy()
    after[-1, -1] = after[3, -2] = after[-1, 4] = 1
    cache = {"diagonal": np.diag(np.linalg.inv(X.T @ X + 3.0 * np.eye(X.shape[1])))}
    monkeypatch.setattr(ease, "refit_seconds", lambda n, dtype: np.inf)
    result = corrected(ease, EASE, grown, after, B=np.pad(ease_by_inverse(X, 3.0), (0, 2)), cache=cache)
    assert result.method == "low-rank update" and result.residual < 1e-12
    assert np.abs(dense(result.B) - ease_by_inverse(after, 3.0)).max() < 1e-12


def test_ease_refits_where_that_is_cheaper(monkeypatch):
    before, after = interactions(2), interactions(3)
    monkeypatch.setattr(ease, "refit_seconds", lambda n, dtype: 0.0)
    monkeypatch.setattr(ease, "WORTH_COMPARING", 0)
    result = corrected(ease, EASE, before, after)
    assert result.method == "refit" and result.residual < 1e-12
    assert np.abs(dense(result.B) - ease_by_inverse(after, 3.0)).max() < 1e-12


def test_ease_refits_when_the_update_drifted(monkeypatch):
    before = interactions(2)
    after = before.copy()
    after[3] = 0
    woodbury = ease.woodbury

    def off(*arguments):
        image, solved, diagonal = woodbury(*arguments)
        return image, solved * 1.5, diagonal

    monkeypatch.setattr(ease, "woodbury", off)
    monkeypatch.setattr(ease, "refit_seconds", lambda n, dtype: np.inf)
    result = corrected(ease, EASE, before, after, tolerance=1e-10)
    assert result.method == "refit" and "backward error" in result.notes[0]
    assert np.abs(dense(result.B) - ease_by_inverse(after, 3.0)).max() < 1e-12
    monkeypatch.setattr(ease, "fit", lambda *arguments: np.zeros_like(before.T @ before))
    with pytest.raises(UnsolvedError):
        corrected(ease, EASE, before, after, B=ease_by_inverse(before, 3.0), tolerance=1e-10)


def test_ease_refuses_a_matrix_of_other_interactions():
    with pytest.raises(MappingMismatch):
        corrected(ease, EASE, interactions(0), interactions(1), B=ease_by_inverse(interactions(5), 3.0))
    with pytest.raises(MappingMismatch):
        corrected(ease, EASE, interactions(0), interactions(1), B=ease_by_inverse(interactions(0), 4.0))


def test_an_answer_that_is_no_number_is_no_solution():
    X, probes = sp.csr_matrix(interactions(0)), np.eye(13)
    answers = np.linalg.inv((X.T @ X).toarray() + 3.0 * np.eye(13))
    assert ease.backward_error(X, 3.0, answers, probes) < 1e-14
    answers[5, 7] = np.nan
    assert np.isnan(ease.backward_error(X, 3.0, answers, probes))


# --- what is forgotten cannot be ranked back --------------------------------------------------------------------------


def auc(scores, history):
    """How often one of ``history`` is ranked above another item, ties counted by half: 0.5 is chance."""
    inside, outside = scores[history], np.delete(scores, np.append(history, 0))
    return np.mean((inside[:, None] > outside) + 0.5 * (inside[:, None] == outside))


def world(seed=0, users=80, items=40):
    """X whose last user alone has the items 1 and 2, beside a history of common ones; user 1 has but item 3."""
    X = interactions(seed, users=users, items=items)
    X[:, 1:4] = 0
    X[-1, [1, 2, 3]] = X[1, 3] = 1
    X[1, 4:] = 0
    assert X[-1].sum() > 5
    return X, np.flatnonzero(X[-1])


def assert_nothing_is_left(B, X, cache, weight=3.0):
    B = dense(B)
    for item in np.flatnonzero(X[:, 1:].sum(axis=0) == 0) + 1:
        assert not B[:, item].any() and not B[item].any()
        assert cache["diagonal"][item] == 1 / weight
    expected = ease_by_inverse(X, weight)
    assert np.abs(B - expected).max() < (1e-5 if B.dtype == np.float32 else 1e-12)


@pytest.fixture
def always_update(monkeypatch):
    monkeypatch.setattr(ease, "refit_seconds", lambda n, dtype: np.inf)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("seed", range(3))
def test_ease_keeps_no_trace_of_who_had_an_item_that_nobody_has_any_more(always_update, dtype, seed):
    before, history = world(seed)
    after = before.copy()
    after[-1] = 0
    result = corrected(ease, EASE, before, after, dtype=dtype)
    assert result.method == "low-rank update"
    for item in (1, 2, 3):  # nobody has the first two; the third one's last user has nothing else
        others = np.setdiff1d(history, item)
        B = dense(result.B)
        for trace in (B[:, item], B[item]):
            assert auc(np.abs(trace), others) == 0.5
            assert not trace.any()
    assert result.cache["diagonal"][1] == result.cache["diagonal"][2] == 1 / 3.0
    assert result.cache["diagonal"][3] == 1 / 4.0
    assert_nothing_is_left(result.B, after, result.cache)
    fitted = ease.fit(sp.csr_matrix(after.astype(dtype)), EASE, dtype)
    assert not fitted[:, [1, 2, 3]].any() and not fitted[[1, 2, 3]].any()


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_ease_keeps_no_trace_after_many_requests(always_update, dtype):
    X, _ = world()
    B, cache = ease.fit(sp.csr_matrix(X.astype(dtype)), EASE, dtype), {}
    rng = np.random.default_rng(0)
    for step in range(25):
        after = X.copy()
        if step % 3 == 2:  # learn an item that nobody has, then forget it, with all that its user has
            item = rng.choice(np.flatnonzero(X.sum(axis=0) == 0)[1:])
            after[5, item] = 1
        elif step % 3 == 0 and step:
            after[5] = 0
            after[5, rng.choice(np.arange(4, X.shape[1]), 6, replace=False)] = 1
        else:
            after[rng.choice(np.flatnonzero(X.sum(axis=1)))] = 0
        if step == 0:
            after = X.copy()
            after[-1] = 0
        result = corrected(ease, EASE, X, after, B=B, dtype=dtype, cache=cache)
        assert result.method == "low-rank update"
        assert_nothing_is_left(result.B, after, result.cache)
        X, B, cache = after, result.B, result.cache


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_ease_keeps_no_trace_between_groups_that_only_the_forgotten_connected(always_update, dtype):
    before = np.zeros((40, 24))
    before[1:20, 1:11], before[20:39, 11:] = interactions(0, 20, 11)[1:, 1:], interactions(1, 20, 14)[1:, 1:]
    before[39, [2, 5, 12, 15, 20]] = 1
    after = before.copy()
    after[39] = 0
    result = corrected(ease, EASE, before, after, dtype=dtype)
    assert result.method == "low-rank update" and result.B[1:11, 1:11].any() and result.B[11:, 11:].any()
    assert not result.B[:11, 11:].any() and not result.B[11:, :11].any()
    assert_nothing_is_left(result.B, after, result.cache)


def test_ease_takes_little_memory():
    import tracemalloc

    rng = np.random.default_rng(0)
    n = 1200
    X = sp.random(1500, n, 0.01, format="csr", random_state=0, dtype=np.float32)
    X.data[:] = 1
    B = ease.fit(X, {"reg_weight": 50.0})
    drop = np.ones(1500, np.float32)
    drop[rng.choice(1500, 5, replace=False)] = 0
    change = change_between(X, sp.csr_matrix(sp.diags(drop.astype(np.float32)) @ X))
    cost_model.rates("float32")
    for fresh, allowed in ((False, 0.3), (True, 1.2)):
        tracemalloc.start()
        result = (
            ease.refit(change.X, {"reg_weight": 50.0}, B.dtype, 1e-4, {})
            if fresh
            else ease.correct(FittedMapping(X, B, {"reg_weight": 50.0}), change, 1e-4)
        )
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert result.method == ("refit" if fresh else "low-rank update")
        assert peak <= allowed * B.nbytes + (1 << 21)  # two block buffers are constant


def test_the_cost_estimates_grow_as_the_work_does():
    assert cost_model.refit_seconds(2000, "float32") > 4 * cost_model.refit_seconds(1000, "float32")
    one, many = (cost_model.low_rank_seconds(2000, rank, 10 * rank, "float32") for rank in (1, 500))
    assert one < cost_model.refit_seconds(2000, "float32") and many > 2 * one


# --- ItemKNN ----------------------------------------------------------------------------------------------------------
