"""The approximate opponent against dense inverses."""

import numpy as np
import pytest
import scipy.sparse as sp

from recbole_llmd.unlearning import Unlearner
from recbole_llmd.unlearning.evaluation.one_step import OneStep, first_order, inverse_diagonal
from recbole_llmd.unlearning.mapping import ease
from recbole_llmd.unlearning.mapping.correction import Change
from recbole_llmd.unlearning.request import Request
from tests.helpers.mapping_models import all_of


def mapping_of(P):
    """EASE's B of an inverse."""
    B = -P / P.diagonal()
    np.fill_diagonal(B, 0)
    return B


@pytest.fixture
def ease_arm(trained):
    config, _, model = trained("EASE")
    Unlearner(model, config).refit("float64")
    return OneStep(model, config), model


def test_the_diagonal_is_that_of_the_inverse(ease_arm):
    _, model = ease_arm
    X = model.interaction_matrix.toarray()
    P = np.linalg.inv(X.T @ X + 10.0 * np.eye(X.shape[1]))
    np.testing.assert_allclose(inverse_diagonal(model.interaction_matrix, model.item_similarity, 10.0), P.diagonal())


def test_each_request_is_one_step_from_the_inverse_before(ease_arm):
    """A user who leaves, one who forgets half, and one who learns it again: P - P·ΔG·P, one after the other."""
    arm, model = ease_arm
    before = model.item_similarity.copy()
    X = model.interaction_matrix.toarray().astype(float)
    P = np.linalg.inv(X.T @ X + 10.0 * np.eye(X.shape[1]))
    half = all_of(model.interaction_matrix, [2])
    half = half.subset(np.arange(len(half) // 2))
    for request in (all_of(model.interaction_matrix, [1]), half, Request("learn", half.users, half.items)):
        changed = X.copy()
        changed[request.users, request.items] = request.kind == "learn"
        P = P - P @ (changed.T @ changed - X.T @ X) @ P
        X = changed
        arm.answer(request)
        np.testing.assert_allclose(arm.engine.B, mapping_of(P), atol=1e-12)
        assert (arm.engine.X.toarray() == X).all() and arm.method == "first-order step"
    assert len(arm.seconds) == 3 and (model.item_similarity == before).all() and (arm.before == before).all()


def test_it_comes_closer_than_doing_nothing_but_not_to_the_model_fitted_again(ease_arm):
    arm, model = ease_arm
    request = all_of(model.interaction_matrix, [1, 2, 3])
    arm.answer(request)
    fitted = ease.fit(arm.engine.X, {"reg_weight": 10.0}, "float64")
    off, nothing = (np.linalg.norm(B - fitted) for B in (arm.engine.B, model.item_similarity))
    assert 1e-3 * nothing < off < 0.6 * nothing


def test_the_error_is_of_second_order():
    """Half the change of XᵀX leaves a quarter of the error."""
    rng = np.random.default_rng(0)
    X = np.vstack([(rng.random((400, 12)) < 0.4).astype(float), np.zeros((1, 12))])
    B, profile = ease.fit(sp.csr_matrix(X), {"reg_weight": 5.0}, "float64"), rng.random(12)
    diagonal, errors = inverse_diagonal(sp.csr_matrix(X), B, 5.0), []
    for size in (0.5, 0.25):
        after = X.copy()
        after[400] = np.sqrt(size) * profile
        delta = sp.csr_matrix((after - X)[[400]])
        stepped, _ = first_order(B, diagonal, Change(sp.csr_matrix(after), np.array([400]), np.arange(12), delta))
        errors.append(np.linalg.norm(stepped - ease.fit(sp.csr_matrix(after), {"reg_weight": 5.0}, "float64")))
    assert errors[0] / errors[1] == pytest.approx(4, rel=0.05)
