"""The ways to answer a request to forget, side by side on copies of one trained model.

=========== ========================================================================================================
original    the model before the requests
no-op       the requests are accepted and nothing is done
X only      the interactions X are corrected, the mapping B is not
corrected   X and B are corrected
SISA        one model on each of several shards of the users, B averaged; the shards concerned are fitted again (after
            SISA, Bourtoule et al., S&P 2021, and RecEraser, Chen et al., WWW 2022)
retrained   the model fitted from scratch on the retained interactions: the reference
=========== ========================================================================================================

All arms answer the same requests. Those that fit anew (SISA, retrained) do so when :meth:`Arm.settle` is called, and
count the time of such fits for each request answered since.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from time import perf_counter
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from recbole.config import Config
from recbole.model.abstract_recommender import GeneralRecommender

from recbole_llmd.unlearning.mapping.correction import MappingModel
from recbole_llmd.unlearning.receipt import Receipt
from recbole_llmd.unlearning.request import Request
from recbole_llmd.unlearning.unlearner import Unlearner

MODES = {"original": "none", "no-op": "none", "X only": "interaction", "corrected": "mapping"}
ARMS = (*MODES, "SISA", "retrained")  # from the untouched model to the reference


def clone(model: GeneralRecommender, mapping: MappingModel) -> GeneralRecommender:
    """A copy of a mapping model with a mapping matrix of its own; X is shared until a correction replaces it."""
    twin = copy.copy(model)
    setattr(twin, mapping.MATRIX, getattr(model, mapping.MATRIX).copy())
    return twin


def engine_on_copy(model: GeneralRecommender, config: Config, mode: str = "mapping") -> Unlearner:
    """An engine that corrects a copy of the model, without hashes in its receipts."""
    engine = Unlearner(model, config, mode=mode, hashes=False)
    engine.model = clone(model, engine.mapping)
    return engine


class Arm:
    """One way to answer requests, in one of the engine's modes.

    Args:
        name: as tables show it.
        model: the trained mapping model; it is not changed.
        config: RecBole's Config, for the model's parameters.
        mode: the engine's.

    Attributes:
        name (str): as tables show it.
        engine (Unlearner): holds the arm's model, a copy.
        seconds (list): what each request took, the update alone.
        peak_bytes (int): the highest memory of a request above what the process held before; None if unknown.
        method (str): what the last request did.

    >>> from types import SimpleNamespace
    >>> from scipy.sparse import csr_matrix
    >>> class EASE(SimpleNamespace):  # stands for RecBole's
    ...     USER_ID, ITEM_ID, n_users, n_items = "user_id", "item_id", 3, 3
    >>> X, B = csr_matrix([[0, 0, 0], [0, 1, 1], [0, 0, 1.0]]), np.zeros((3, 3))
    >>> model = EASE(interaction_matrix=X, item_similarity=B)
    >>> arm = Arm("X only", model, {"reg_weight": 1.0}, "interaction")
    >>> receipt = arm.answer(Request("forget", np.array([1]), np.array([2])))
    >>> arm.engine.X.nnz, X.nnz
    (2, 3)
    """

    def __init__(self, name: str, model: GeneralRecommender, config: Config, mode: str) -> None:
        self.name = name
        self.seconds: list[float] = []
        self.peak_bytes: int | None = None
        self.method = "none"
        self.engine = engine_on_copy(model, config, mode)

    @property
    def model(self) -> GeneralRecommender:
        """The arm's model."""
        return self.engine.model

    def answer(self, request: Request) -> Receipt | None:
        """Answer a request; the receipt is None where the answer waits for :meth:`settle`."""
        receipt = self.engine.apply(request)
        self._count([receipt.seconds], receipt.peak_bytes, receipt.method)
        return receipt

    def settle(self) -> None:
        """Finish what was put off: afterwards the model has answered every request."""

    def _count(self, seconds: list[float], peak_bytes: int | None, method: str) -> None:
        self.seconds += seconds
        self.method = method
        if peak_bytes is not None:
            self.peak_bytes = max(self.peak_bytes or 0, peak_bytes)


class _Deferred(Arm):
    """Answers all requests since the last time together, when it is settled."""

    def __init__(self, name: str, model: GeneralRecommender, config: Config, mode: str) -> None:
        super().__init__(name, model, config, mode)
        self._waiting: list[Request] = []

    def answer(self, request: Request) -> None:
        self._waiting.append(request)

    def settle(self) -> None:
        waiting, self._waiting = self._waiting, []
        if waiting:
            self._settle(waiting, self.engine.apply(_joined(waiting)))

    def _settle(self, requests: list[Request], receipt: Receipt) -> None:
        raise NotImplementedError


def _joined(requests: Sequence[Request]) -> Request:
    """Requests of one kind as one."""
    users, items = (np.concatenate([getattr(request, key) for request in requests]) for key in ("users", "items"))
    values = None
    if any(request.values is not None for request in requests):
        values = np.concatenate([np.ones(len(r)) if r.values is None else r.values for r in requests])
    return Request(requests[0].kind, users, items, values)


class Retrained(_Deferred):
    """Fitted from scratch; one fit for all requests since the last one, and counted for each of them.

    >>> from types import SimpleNamespace
    >>> from scipy.sparse import csr_matrix
    >>> class EASE(SimpleNamespace):  # stands for RecBole's
    ...     USER_ID, ITEM_ID, n_users, n_items = "user_id", "item_id", 3, 3
    >>> X, B = csr_matrix([[0, 0, 0], [0, 1, 1], [0, 0, 1.0]]), np.zeros((3, 3))
    >>> model = EASE(interaction_matrix=X, item_similarity=B)
    >>> arm = Retrained(model, {"reg_weight": 1.0})
    >>> for item in (1, 2):
    ...     arm.answer(Request("forget", np.array([1]), np.array([item])))
    >>> arm.settle()
    >>> arm.engine.X.nnz, len(arm.seconds), len(set(arm.seconds))
    (1, 2, 1)
    """

    def __init__(self, model: GeneralRecommender, config: Config) -> None:
        super().__init__("retrained", model, config, "retrain")

    def _settle(self, requests: list[Request], receipt: Receipt) -> None:
        self._count([receipt.seconds] * len(requests), receipt.peak_bytes, receipt.method)


class Shard(NamedTuple):
    """The model of one shard of the users, in its engine, and the receipt of its fit from scratch.

    >>> from types import SimpleNamespace
    >>> from scipy.sparse import csr_matrix
    >>> class EASE(SimpleNamespace):  # stands for RecBole's
    ...     USER_ID, ITEM_ID, n_users, n_items = "user_id", "item_id", 3, 3
    >>> X = csr_matrix([[0, 0, 0], [0, 1, 1], [0, 0, 1.0]])
    >>> model = EASE(interaction_matrix=X, item_similarity=np.zeros((3, 3)))
    >>> shards = Sisa(model, {"unlearn_shards": 2, "seed": 1, "reg_weight": 1.0}).shards
    >>> [(shard.fit.method, int(shard.engine.X.sum())) for shard in shards]  # what both users have, one in each shard
    [('refit', 2), ('refit', 1)]
    """

    engine: Unlearner
    fit: Receipt


class Sisa(_Deferred):
    """Models on shards of the users, their mapping matrices averaged: scores X·B are then the mean of the shards'.

    Users are dealt out at random to ``unlearn_shards`` shards, by RecBole's seed. A shard that a request concerns
    counts the seconds of its fit from scratch, which is timed once; the mapping matrix that such a fit would give is
    reached by correcting the shard's.

    Args:
        model, config: as for :class:`Arm`.
        fitted: the shards of another Sisa of equal interactions, if there is one; they are copied.

    Attributes:
        shard_of: the number of each user's shard [n_users]; -1 for RecBole's padding.
        row_of: the row of each user in the X of the shard [n_users].
        shards (list of Shard): by number.

    >>> from types import SimpleNamespace
    >>> from scipy.sparse import csr_matrix
    >>> class EASE(SimpleNamespace):  # stands for RecBole's
    ...     USER_ID, ITEM_ID, n_users, n_items = "user_id", "item_id", 3, 3
    >>> X, B = csr_matrix([[0, 0, 0], [0, 1, 1], [0, 0, 1.0]]), np.zeros((3, 3))
    >>> arm = Sisa(EASE(interaction_matrix=X, item_similarity=B), {"unlearn_shards": 2, "seed": 1, "reg_weight": 1.0})
    >>> arm.shard_of.tolist(), [shard.engine.X.shape for shard in arm.shards]
    ([-1, 0, 1], [(2, 3), (2, 3)])
    """

    def __init__(self, model: GeneralRecommender, config: Config, fitted: Sequence[Shard] | None = None) -> None:
        super().__init__("SISA", model, config, "interaction")
        number_of_shards, n_users = config["unlearn_shards"], self.model.n_users
        self.shard_of: NDArray[np.int64] = np.full(n_users, -1)
        self.row_of: NDArray[np.int64] = np.zeros(n_users, np.int64)
        self.shard_of[1:] = np.random.default_rng(config["seed"]).permutation(n_users - 1) % number_of_shards
        for number in range(number_of_shards):
            members = self.shard_of == number
            self.row_of[members] = 1 + np.arange(members.sum())
        if fitted:
            self.shards = [Shard(engine_on_copy(engine.model, config), fit) for engine, fit in fitted]
        else:
            self.shards = [self._fitted(number) for number in range(number_of_shards)]
        self._serve()

    def _fitted(self, number: int) -> Shard:
        """A shard fitted from scratch; row 0 of its X is RecBole's padding, as in the full one."""
        twin, X = clone(self.model, self.engine.mapping), self.engine.X
        twin.interaction_matrix = X[np.append(0, np.flatnonzero(self.shard_of == number))]
        twin.n_users = twin.interaction_matrix.shape[0]
        engine = Unlearner(twin, self.engine.config, hashes=False)
        return Shard(engine, engine.refit())

    def _settle(self, requests: list[Request], receipt: Receipt) -> None:
        users, items = np.asarray(receipt.users), np.asarray(receipt.items)
        concerned = np.unique(self.shard_of[users])
        for number in concerned:
            members = self.shard_of[users] == number
            request = Request("forget", self.row_of[users[members]], items[members])
            self.shards[number].engine.apply(request)
        started = perf_counter()
        self._serve()
        serving = perf_counter() - started
        seconds = [
            serving + sum(self.shards[number].fit.seconds for number in np.unique(self.shard_of[request.users]))
            for request in requests
        ]
        peaks = [self.shards[number].fit.peak_bytes for number in concerned]
        known = [peak for peak in peaks if peak is not None]
        peak = max(known) if len(known) == len(peaks) else None
        self._count(seconds, peak, f"{len(concerned)} of {len(self.shards)} shards fitted")

    def _serve(self) -> None:
        """Give the arm's model the mean of the shards' mapping matrices."""
        mapping = self.engine.mapping
        matrices = [shard.engine.B for shard in self.shards]
        B = (sum(matrices[1:], start=matrices[0]) / len(matrices)).astype(self.engine.B.dtype)
        for name, value in {mapping.MATRIX: B, **mapping.derived(self.engine.X, B, self.engine.params)}.items():
            setattr(self.model, name, value)
