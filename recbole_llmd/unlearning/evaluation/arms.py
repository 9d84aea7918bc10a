"""The ways to answer a request to forget, side by side on copies of one trained model.

============== =====================================================================================================
original       the model before the requests
no-op          the requests are accepted and nothing is done
X only         the interactions X are corrected (a user's rows are dropped), the mapping B is not
one step       X is corrected, and B by the first-order term of the correction alone (EASE)
corrected      X and B are corrected
SISA           one model on each of several random shards of the users, B averaged
RecEraser-mean the same on shards of similar users
retrained      the model fitted from scratch on the retained interactions: the reference
============== =====================================================================================================

All arms answer the same requests, by engines with the engine's own defaults, and the time of a request is all that the
engine takes for it, its hashes too. Arms that fit anew (those of shards, retrained) do so when :meth:`Arm.settle` is
called, and count the time of such fits for each request answered since.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from time import perf_counter
from typing import Any

import numpy as np
from recbole.config import Config
from recbole.model.abstract_recommender import GeneralRecommender

from recbole_llmd.unlearning.mapping.correction import MappingMatrix
from recbole_llmd.unlearning.receipt import Receipt
from recbole_llmd.unlearning.request import Request
from recbole_llmd.unlearning.unlearner import Unlearner

MODES = {"original": "none", "no-op": "none", "X only": "interaction", "corrected": "mapping"}
ARMS = ("original", "no-op", "X only", "one step", "corrected", "SISA", "RecEraser-mean", "retrained")


def engine_on_copy(model: GeneralRecommender, config: Config, mode: str = "mapping", **settings: Any) -> Unlearner:
    """An engine, of the engine's own defaults but for ``settings``, that corrects a copy of the model."""
    engine = Unlearner(model, config, mode=mode, **settings)
    engine.model = copy.copy(model)  # corrections replace matrices and write in none
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
        before (NDArray or spmatrix): B before any request.
        seconds (list): what each request took.
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
        self.before: MappingMatrix = getattr(model, self.engine.mapping.MATRIX)

    @property
    def model(self) -> GeneralRecommender:
        """The arm's model."""
        return self.engine.model

    def answer(self, request: Request) -> Receipt | None:
        """Answer a request; the receipt is None where the answer waits for :meth:`settle`."""
        started = perf_counter()
        receipt = self.engine.apply(request)
        self._count([perf_counter() - started], receipt.peak_bytes, receipt.method)
        return receipt

    def settle(self) -> None:
        """Finish what was put off: afterwards the model has answered every request."""

    def _count(self, seconds: list[float], peak_bytes: int | None, method: str) -> None:
        self.seconds += seconds
        self.method = method
        if peak_bytes is not None:
            self.peak_bytes = max(self.peak_bytes or 0, peak_bytes)


class Deferred(Arm):
    """Answers all requests since the last time together, when it is settled; the base of the arms that fit anew.

    >>> sorted(arm.__name__ for arm in Deferred.__subclasses__() if arm.__module__ == __name__)
    ['Retrained']
    """

    def __init__(self, name: str, model: GeneralRecommender, config: Config, mode: str) -> None:
        super().__init__(name, model, config, mode)
        self._waiting: list[Request] = []

    def answer(self, request: Request) -> None:
        """Put the request off."""
        self._waiting.append(request)

    def settle(self) -> None:
        """Answer the requests put off."""
        waiting, self._waiting = self._waiting, []
        if waiting:
            self._settle(waiting, _joined(waiting))

    def _settle(self, requests: list[Request], joined: Request) -> None:
        raise NotImplementedError


def _joined(requests: Sequence[Request]) -> Request:
    """Requests of one kind as one."""
    users, items = (np.concatenate([getattr(request, key) for request in requests]) for key in ("users", "items"))
    values = None
    if any(request.values is not None for request in requests):
        values = np.concatenate([np.ones(len(r)) if r.values is None else r.values for r in requests])
    return Request(requests[0].kind, users, items, values)


class Retrained(Deferred):
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

    def _settle(self, requests: list[Request], joined: Request) -> None:
        started = perf_counter()
        receipt = self.engine.apply(joined)
        self._count([perf_counter() - started] * len(requests), receipt.peak_bytes, receipt.method)
