"""The arms of shards: models on disjoint groups of users, of which a request concerns a few.

After SISA (Bourtoule et al., S&P 2021, arXiv 1912.03817), with random shards, and RecEraser (Chen et al., WWW 2022,
arXiv 2201.06820), with balanced shards of similar users. Both average the shards' mapping matrices; RecEraser's learned
attention over the shards is not here.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from time import perf_counter
from typing import Any, NamedTuple

import numpy as np
import scipy.sparse as sp
from numpy.typing import NDArray
from recbole.config import Config
from recbole.model.abstract_recommender import GeneralRecommender

from recbole_llmd.unlearning.evaluation.arms import Deferred, engine_on_copy
from recbole_llmd.unlearning.mapping.correction import explicit
from recbole_llmd.unlearning.published_model import where_it_is
from recbole_llmd.unlearning.request import Request
from recbole_llmd.unlearning.unlearner import Unlearner

EMBEDDING = 16  # dimensions in which users are compared
ITERATIONS = 20  # of the clustering, at most

# The settings that stand beside sums over users and so shrink with them; SLIMElastic's alpha stands beside a mean.
PENALTIES = ("reg_weight", "shrink", "lambda1", "lambda2")


def scaled_penalties(params: Mapping[str, Any], share: float) -> dict[str, Any]:
    """A model's parameters for a ``share`` of the users: those of ``PENALTIES`` in proportion, the others as they are.

    >>> scaled_penalties({"reg_weight": 250.0}, 0.2), scaled_penalties({"k": 100, "shrink": None}, 0.2)
    ({'reg_weight': 50.0}, {'k': 100, 'shrink': None})
    """
    return {key: value * share if key in PENALTIES and value is not None else value for key, value in params.items()}


def random_shards(X: sp.csr_matrix, number: int, seed: int) -> NDArray[np.int64]:
    """The shard of each user [n_users], dealt out at random, sizes equal to one; -1 for RecBole's padding, user 0.

    >>> sorted(random_shards(sp.csr_matrix((5, 3)), 2, seed=1).tolist())
    [-1, 0, 0, 1, 1]
    """
    n_users = X.shape[0]
    return np.append(-1, np.random.default_rng(seed).permutation(n_users - 1) % number)


def similar_users(X: sp.csr_matrix, number: int, seed: int) -> NDArray[np.int64]:
    """The shard of each user [n_users], so that similar users share one and none has more than its even share.

    RecEraser's user-based balanced partition: k-means in which a cluster takes no more than ⌈users / shards⌉, the
    nearest first. Users are compared by the directions of their rows of the truncated singular value decomposition
    of X.

    >>> X = sp.csr_matrix([[0, 0, 0, 0], [1, 1, 0, 0], [0, 0, 1, 1], [1, 1, 0, 0], [0, 0, 1, 1.0]])
    >>> similar_users(X, 2, seed=1)
    array([-1,  1,  0,  1,  0])
    """
    from sklearn.utils.extmath import randomized_svd

    users = X[1:].astype(np.float64)
    rank = max(1, min(EMBEDDING, *(side - 1 for side in users.shape)))
    left, values, _ = randomized_svd(users, rank, random_state=seed)
    points = left * values
    lengths = np.linalg.norm(points, axis=1, keepdims=True)
    points = np.divide(points, lengths, out=np.zeros_like(points), where=lengths > 0)
    anchors = points[np.random.default_rng(seed).choice(len(points), min(number, len(points)), replace=False)]
    room = -(-len(points) // number)
    shards = np.full(len(points), -1, np.int64)
    for _ in range(ITERATIONS):
        before, shards = shards, balanced_assignment(((points[:, None] - anchors) ** 2).sum(axis=2), room)
        if (before == shards).all():
            break
        members = [points[shards == cluster] for cluster in range(len(anchors))]
        anchors = np.stack([own.mean(axis=0) if len(own) else old for own, old in zip(members, anchors, strict=True)])
    return np.append(-1, shards)


def balanced_assignment(distances: NDArray[np.float64], room: int) -> NDArray[np.int64]:
    """A cluster for each point: of all pairs the nearest first, as long as the cluster has ``room``.

    >>> balanced_assignment(np.array([[0.0, 3.0], [1.0, 2.0], [2.0, 9.0]]), room=2)
    array([0, 0, 1])

    Args:
        distances: [points, clusters]; equal ones count in the order of points, then clusters.
        room: of each cluster, at least points / clusters.
    """
    assigned = np.full(len(distances), -1, np.int64)
    left = [room] * distances.shape[1]
    points, clusters = np.unravel_index(np.argsort(distances, axis=None, kind="stable"), distances.shape)
    for point, cluster in zip(points.tolist(), clusters.tolist()):
        if assigned[point] < 0 and left[cluster]:
            assigned[point] = cluster
            left[cluster] -= 1
    return assigned


PARTITIONS: dict[str, Callable[[sp.csr_matrix, int, int], NDArray[np.int64]]] = {
    "SISA": random_shards,
    "RecEraser-mean": similar_users,
}


class Shard(NamedTuple):
    """The model of one shard of the users, in its engine, and what its fit from scratch took.

    >>> from types import SimpleNamespace
    >>> class EASE(SimpleNamespace):  # stands for RecBole's
    ...     USER_ID, ITEM_ID, n_users, n_items = "user_id", "item_id", 3, 3
    >>> X = sp.csr_matrix([[0, 0, 0], [0, 1, 1], [0, 0, 1.0]])
    >>> model = EASE(interaction_matrix=X, item_similarity=np.zeros((3, 3)))
    >>> shards = Sharded("SISA", model, {"unlearn_shards": 2, "seed": 1, "reg_weight": 1.0}).shards
    >>> [(shard.engine.params, int(shard.engine.X.sum())) for shard in shards]  # one user in each
    [({'reg_weight': 0.5}, 2), ({'reg_weight': 0.5}, 1)]
    """

    engine: Unlearner
    seconds: float
    peak_bytes: int | None


class Sharded(Deferred):
    """Models on shards of the users, their mapping matrices averaged: scores X·B are then the mean of the shards'.

    The users stand in ``unlearn_shards`` shards by ``PARTITIONS[name]``, drawn by RecBole's seed; each is fitted with
    its share of the penalties. A shard that a request concerns counts the seconds of its fit from scratch, which is
    timed once; the mapping matrix that such a fit would give is reached by correcting the shard's.

    Args:
        name: of the partition, as tables show it.
        model, config: as for :class:`~recbole_llmd.unlearning.evaluation.arms.Arm`.
        fitted: an arm of the same name and equal interactions whose shards are taken over, copied, if there is one.

    Attributes:
        shard_of: the number of each user's shard [n_users]; -1 for RecBole's padding.
        row_of: the row of each user in the X of the shard [n_users].
        shards (list of Shard): by number.

    >>> from types import SimpleNamespace
    >>> class EASE(SimpleNamespace):  # stands for RecBole's
    ...     USER_ID, ITEM_ID, n_users, n_items = "user_id", "item_id", 3, 3
    >>> X, B = sp.csr_matrix([[0, 0, 0], [0, 1, 1], [0, 0, 1.0]]), np.zeros((3, 3))
    >>> settings = {"unlearn_shards": 2, "seed": 1, "reg_weight": 1.0}
    >>> arm = Sharded("SISA", EASE(interaction_matrix=X, item_similarity=B), settings)
    >>> arm.shard_of.tolist(), [shard.engine.X.shape for shard in arm.shards]
    ([-1, 0, 1], [(2, 3), (2, 3)])
    """

    def __init__(self, name: str, model: GeneralRecommender, config: Config, fitted: Sharded | None = None) -> None:
        super().__init__(name, model, config, "interaction")
        number = config["unlearn_shards"]
        self.shard_of: NDArray[np.int64] = (
            fitted.shard_of if fitted else PARTITIONS[name](self.engine.X, number, config["seed"])
        )
        self.row_of: NDArray[np.int64] = np.zeros(len(self.shard_of), np.int64)
        for shard in range(number):
            members = self.shard_of == shard
            self.row_of[members] = 1 + np.arange(members.sum())
        self.shards: list[Shard] = [_copied(shard) for shard in fitted.shards] if fitted else self._all_fitted(number)
        self._serve()
        self.before = self.engine.B

    def _all_fitted(self, number: int) -> list[Shard]:
        return [self._fit(shard) for shard in range(number)]

    def _fit(self, number: int) -> Shard:
        """A shard fitted from scratch; row 0 of its X is RecBole's padding, as in the full one."""
        engine = engine_on_copy(self.model, self.engine.config)
        engine.model.interaction_matrix = self.engine.X[np.append(0, np.flatnonzero(self.shard_of == number))]
        engine.model.n_users = engine.model.interaction_matrix.shape[0]
        engine.params = scaled_penalties(engine.params, 1 / self.engine.config["unlearn_shards"])
        started = perf_counter()
        receipt = engine.refit()
        return Shard(engine, perf_counter() - started, receipt.peak_bytes)

    def _settle(self, requests: list[Request], joined: Request) -> None:
        pairs = joined.distinct()
        pairs = pairs.subset(pairs.applies_to(self.engine.X))
        self.engine.apply(joined)
        owners = self.shard_of[pairs.users]
        concerned = np.unique(owners)
        for number in concerned:
            own = pairs.subset(owners == number)
            self.shards[number].engine.apply(Request("forget", self.row_of[own.users], own.items))
        started = perf_counter()
        self._serve()
        serving = perf_counter() - started
        seconds = [
            serving + sum(self.shards[number].seconds for number in np.unique(self.shard_of[request.users]))
            for request in requests
        ]
        peaks = [self.shards[number].peak_bytes for number in concerned]
        known = [peak for peak in peaks if peak is not None]
        peak = max(known, default=None) if len(known) == len(peaks) else None
        self._count(seconds, peak, f"{len(concerned)} of {len(self.shards)} shards fitted")

    def _serve(self) -> None:
        """Give the arm's model the mean of the shards' mapping matrices."""
        mapping = self.engine.mapping
        matrices: Sequence[Any] = [explicit(shard.engine.B) for shard in self.shards]
        B = (sum(matrices[1:], start=matrices[0]) / len(matrices)).astype(self.engine.B.dtype)
        derived = mapping.derived(self.engine.X, B, self.engine.params)
        for name, value in {mapping.MATRIX: B, **where_it_is(self.model, derived)}.items():
            setattr(self.model, name, value)


def _copied(shard: Shard) -> Shard:
    """The shard with an engine and a model of its own."""
    engine = engine_on_copy(shard.engine.model, shard.engine.config)
    engine.params = shard.engine.params
    return shard._replace(engine=engine)
