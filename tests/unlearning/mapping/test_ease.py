"""EASE's correction against the inverse, and what corrections cost."""

import numpy as np
import pytest
import scipy.sparse as sp
from hypothesis import given
from threadpoolctl import threadpool_limits

from recbole_llmd.errors import MappingMismatch, UnsolvedError
from recbole_llmd.unlearning.mapping import cost_model, ease
from recbole_llmd.unlearning.mapping.correction import FittedMapping
from tests.helpers.mapping_cases import EASE, change_between, changes, corrected, interactions, quick


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
    assert np.linalg.norm(result.B - expected) <= allowed * np.linalg.norm(expected)
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
    with pytest.raises(UnsolvedError):
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
    change = change_between(X, sp.csr_matrix(sp.diags(drop.astype(np.float32)) @ X))
    cost_model.rates("float32")
    for fresh, allowed in ((False, 0.4), (True, 1.2)):
        tracemalloc.start()
        result = (
            ease._refit(change.X, {"reg_weight": 50.0}, B.dtype, 1e-4, {})
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
