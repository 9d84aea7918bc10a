"""The arms that unlearning is compared with."""

import numpy as np
import pytest

from recbole_llmd.registry import mapping_module
from recbole_llmd.unlearning import Unlearner
from recbole_llmd.unlearning.evaluation.arms import Arm, Retrained, Sisa
from recbole_llmd.unlearning.request import Request
from tests.helpers.mapping_models import MODELS, dense


@pytest.fixture
def arm_of(trained):
    """``arm_of(name, kind)`` gives an arm on RecBole's model of the tiny dataset, and the model."""

    def _arm_of(name, kind):
        config, _, model = trained(name, unlearn_shards=3)
        Unlearner(model, config).refit()
        return kind(model, config), model

    return _arm_of


def all_of(X, users):
    """The request to forget everything of these users."""
    owners, items = X.nonzero()
    chosen = np.isin(owners, users)
    return Request("forget", owners[chosen], items[chosen])


@pytest.mark.parametrize("name", MODELS)
def test_sisa_is_the_mean_of_models_of_the_shards_fitted_to_what_they_keep(arm_of, name):
    arm, model = arm_of(name, Sisa)
    mapping, X = mapping_module(name), model.interaction_matrix.copy()
    params = arm.engine.params

    def mean_of_fits(X):
        shards = [X[np.append(0, np.flatnonzero(arm.shard_of == n))] for n in range(3)]
        assert sum(shard.nnz for shard in shards) == X.nnz
        return np.mean([dense(mapping.fit(shard, params)) for shard in shards], axis=0)

    np.testing.assert_allclose(dense(arm.engine.B), mean_of_fits(X), atol=2e-5)
    request = all_of(X, np.flatnonzero(arm.shard_of == 1)[:4])  # all of one shard
    arm.answer(request)
    assert arm.seconds == [] and arm.engine.X.nnz == X.nnz  # not before it is settled
    arm.settle()
    X[request.users, request.items] = 0
    X.eliminate_zeros()
    np.testing.assert_allclose(dense(arm.engine.B), mean_of_fits(X), atol=2e-5)
    assert arm.engine.X.nnz == X.nnz and arm.method == "1 of 3 shards fitted"
    assert arm.seconds[0] >= arm.shards[1].fit.seconds


def test_sisa_takes_over_fitted_shards_without_changing_them(arm_of, trained):
    arm, model = arm_of("EASE", Sisa)
    before = [shard.engine.B.copy() for shard in arm.shards]
    other = Sisa(model, arm.engine.config, arm.shards)
    other.answer(all_of(model.interaction_matrix, [1, 2, 3]))
    other.settle()
    assert not np.array_equal(dense(other.engine.B), dense(arm.engine.B))
    assert all(np.array_equal(old, shard.engine.B) for old, shard in zip(before, arm.shards))


@pytest.mark.parametrize("name", MODELS)
def test_retrained_fits_once_and_counts_it_for_every_request(arm_of, name):
    arm, model = arm_of(name, Retrained)
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
    assert arm.seconds == [receipt.seconds] and arm.model is not model
    assert (arm.engine.X.nnz < X.nnz) == (mode != "none")
