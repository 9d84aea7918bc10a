"""The arms of shards: how users are dealt out, with which penalties, and that they are the mean of fits of shards."""

import numpy as np
import pytest
import scipy.sparse as sp

from recbole_llmd.registry import mapping_module
from recbole_llmd.unlearning import Unlearner
from recbole_llmd.unlearning.evaluation import shards
from recbole_llmd.unlearning.evaluation.shards import PARTITIONS, Sharded, balanced_assignment, similar_users
from tests.helpers.mapping_models import MODELS, all_of, dense

SHARDS = 3
# The parameters of a third of the users, by hand; SLIMElastic's objective is a mean over users already.
SCALED = {
    "EASE": {"reg_weight": 10.0 / 3},
    "AsymKNN": {},  # has no penalty
    "ItemKNN": {"shrink": 6.0 / 3},
    "SLIMElastic": {},
    "ADMMSLIM": {"lambda1": 1.0 / 3, "lambda2": 10.0 / 3},
    "DualEASE": {"reg_weight": 10.0 / 3},
    "SparseEASE": {"reg_weight": 10.0 / 3},
    "NCEPLRec": {"reg_weight": 2.0 / 3},
}


@pytest.fixture
def sharded(trained):
    """``sharded(model, partition)`` gives an arm on RecBole's model of the tiny dataset, and the model."""

    def _sharded(name, partition="SISA"):
        more = {"shrink": 6.0} if name == "ItemKNN" else {}
        config, _, model = trained(name, unlearn_shards=SHARDS, **more)
        Unlearner(model, config).refit()
        return Sharded(partition, model, config), model

    return _sharded


@pytest.mark.parametrize("partition", PARTITIONS)
@pytest.mark.parametrize("name", MODELS)
def test_it_is_the_mean_of_models_of_the_shards_fitted_to_what_they_keep(sharded, name, partition):
    arm, model = sharded(name, partition)
    mapping, X = mapping_module(name), model.interaction_matrix.copy()
    params = arm.engine.params | SCALED[name]

    def mean_of_fits(X):
        parts = [X[np.append(0, np.flatnonzero(arm.shard_of == n))] for n in range(SHARDS)]
        assert sum(part.nnz for part in parts) == X.nnz
        return np.mean([dense(mapping.fit(part, params)) for part in parts], axis=0)

    np.testing.assert_allclose(dense(arm.engine.B), mean_of_fits(X), atol=2e-5)
    before = dense(arm.engine.B).copy()
    request = all_of(X, np.flatnonzero(arm.shard_of == 1)[:4])  # all of one shard
    arm.answer(request)
    assert arm.seconds == [] and arm.engine.X.nnz == X.nnz  # not before it is settled
    arm.settle()
    X[request.users, request.items] = 0
    X.eliminate_zeros()
    np.testing.assert_allclose(dense(arm.engine.B), mean_of_fits(X), atol=2e-5)
    assert arm.engine.X.nnz == X.nnz and arm.method == f"1 of {SHARDS} shards fitted"
    assert arm.seconds[0] >= arm.shards[1].seconds
    assert (dense(arm.before) == before).all() and not np.array_equal(before, dense(arm.engine.B))


def test_repeated_pairs_of_several_requests_are_answered_from_the_requests_alone(sharded):
    arm, model = sharded("EASE")
    X = model.interaction_matrix
    for user in (1, 2):
        request = all_of(X, [user])
        arm.answer(request.subset(np.append(np.arange(len(request)), 0)))  # its first pair twice
    arm.settle()
    gone = {(shard, row) for shard, row in zip(arm.shard_of[[1, 2]], arm.row_of[[1, 2]], strict=True)}
    assert all(arm.shards[shard].engine.X[row].nnz == 0 for shard, row in gone)
    assert sum(shard.engine.X.nnz for shard in arm.shards) == arm.engine.X.nnz == X.nnz - X[[1, 2]].nnz


def test_fitted_shards_are_taken_over_without_changing_them(sharded):
    arm, model = sharded("EASE")
    before = [shard.engine.B.copy() for shard in arm.shards]
    other = Sharded("SISA", model, arm.engine.config, arm)
    assert [shard.engine.params for shard in other.shards] == [pytest.approx({"reg_weight": 10.0 / 3})] * SHARDS
    other.answer(all_of(model.interaction_matrix, [1, 2, 3]))
    other.settle()
    assert not np.array_equal(dense(other.engine.B), dense(arm.engine.B))
    assert all(np.array_equal(old, shard.engine.B) for old, shard in zip(before, arm.shards))


def test_random_shards_are_even_and_of_the_seed():
    X = sp.csr_matrix((23, 4))
    dealt = [shards.random_shards(X, 4, seed).tolist() for seed in (1, 1, 2)]
    assert dealt[0] == dealt[1] != dealt[2]
    assert dealt[0][0] == -1 and sorted(np.bincount(dealt[0][1:])) == [5, 5, 6, 6]


@pytest.mark.parametrize("seed", range(5))
def test_the_assignment_takes_the_nearest_pairs_first(seed):
    rng = np.random.default_rng(seed)
    distances, room = rng.integers(0, 40, (17, 4)).astype(float), 5
    expected, left = {}, dict.fromkeys(range(4), room)
    for _, point, cluster in sorted((distances[p, c], p, c) for p in range(17) for c in range(4)):
        if point not in expected and left[cluster] > 0:
            expected[point] = cluster
            left[cluster] -= 1
    assert balanced_assignment(distances, room).tolist() == [expected[point] for point in range(17)]


def blocks(sizes, rng, items=12):
    """Users of as many tastes as sizes, each with half of the items of their own block; and their tastes, shuffled."""
    tastes = rng.permutation(np.repeat(np.arange(len(sizes)), sizes))
    X = np.zeros((len(tastes) + 1, items * len(sizes)))
    for user, taste in enumerate(tastes, 1):
        X[user, taste * items + rng.choice(items, items // 2, replace=False)] = 1
    return sp.csr_matrix(X), tastes


@pytest.mark.parametrize("seed", range(3))
def test_users_of_one_taste_share_a_shard(seed):
    X, tastes = blocks([20, 20, 20], np.random.default_rng(7))
    shard_of = similar_users(X, 3, seed)
    assert shard_of[0] == -1 and np.bincount(shard_of[1:]).tolist() == [20, 20, 20]
    assert len(set(zip(tastes, shard_of[1:]))) == 3
    assert (shard_of == similar_users(X, 3, seed)).all()


def test_no_shard_of_similar_users_has_more_than_its_share():
    X, tastes = blocks([50, 7, 4], np.random.default_rng(7))
    shard_of = similar_users(X, 3, seed=0)[1:]
    assert sorted(np.bincount(shard_of)) == [19, 21, 21]  # 61 users: at most 21
    together = sum(np.bincount(shard_of[tastes == taste]).max() for taste in (1, 2))
    assert together >= 10  # of 11 users of the small tastes


def test_users_without_interactions_are_dealt_out_too():
    assert sorted(similar_users(sp.csr_matrix((9, 5)), 4, seed=0).tolist()) == [-1, 0, 0, 1, 1, 2, 2, 3, 3]
