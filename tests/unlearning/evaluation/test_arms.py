"""The arms that unlearning is compared with."""

import numpy as np
import pytest

from recbole_llmd.registry import mapping_module
from recbole_llmd.unlearning import Unlearner
from recbole_llmd.unlearning.evaluation import arms
from recbole_llmd.unlearning.evaluation.arms import Arm, Retrained
from tests.helpers.mapping_models import MODELS, all_of, dense


@pytest.mark.parametrize("name", MODELS)
def test_retrained_fits_once_and_counts_it_for_every_request(trained, name):
    config, _, model = trained(name)
    Unlearner(model, config).refit()
    arm = Retrained(model, config)
    X = model.interaction_matrix.copy()
    for user in (1, 2, 3):
        arm.answer(all_of(X, [user]))
    assert arm.seconds == []
    arm.settle()
    arm.settle()  # nothing more to do
    request = all_of(X, [1, 2, 3])
    X[request.users, request.items] = 0
    X.eliminate_zeros()
    assert len(arm.seconds) == 3 and len(set(arm.seconds)) == 1
    assert (dense(arm.engine.B) == dense(mapping_module(name).fit(X, arm.engine.params, arm.engine.B.dtype))).all()


@pytest.mark.parametrize("mode", ["none", "interaction", "mapping"])
def test_an_arm_leaves_the_model_as_it_was(trained, mode):
    config, _, model = trained("EASE")
    X, B = model.interaction_matrix.copy(), np.array(model.item_similarity)
    arm = Arm("arm", model, config, mode)
    receipt = arm.answer(all_of(X, [1, 2]))
    assert (model.interaction_matrix != X).nnz == 0 and (np.asarray(model.item_similarity) == B).all()
    assert len(arm.seconds) == 1 and arm.seconds[0] >= receipt.seconds and arm.model is not model
    assert (arm.engine.X.nnz < X.nnz) == (mode != "none")


def test_a_request_takes_all_that_the_engine_does_by_its_own_defaults(trained, monkeypatch):
    """Also what it does beside the correction, such as hashing, which stands under no other time of the receipt."""
    config, _, model = trained("EASE")
    arm = Arm("corrected", model, config, "mapping")
    assert arm.engine.hashes == Unlearner(model, config).hashes
    clock = iter([100.0, 107.5])
    monkeypatch.setattr(arms, "perf_counter", lambda: next(clock))
    arm.answer(all_of(model.interaction_matrix, [1, 2]))
    assert arm.seconds == [7.5]
