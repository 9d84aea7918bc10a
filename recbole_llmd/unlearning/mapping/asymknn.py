"""AsymKNN (Aiolli, RecSys 2013) as RecBole fits it: the k largest asymmetric cosine similarities of every item or user.

    s_ij = c_ij / (n_j^alpha·n_i^(1 - alpha) + 1e-6),   c = XᵀX,   n: the sums of X's columns,   column j of w: the k
    largest s_ij, i ≠ j;   score of user u and item i: ((X·w)_ui / (|x_u|^(2·beta)·|w_i|^(2·(1 - beta)) + 1e-6))^q

with w_i a row of w, as RecBole has it. With ``knn_method: user``, c = XXᵀ, n are the sums of X's rows, row j of w has
the k largest, and the scores have w·X, |w_u| and the norm of column i of X. w is exact to the bit, with ties at the
k-th place decided by id (:mod:`~recbole_llmd.unlearning.mapping.neighbours`).
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from typing import Any

import numpy as np
import scipy.sparse as sp
from numpy.typing import DTypeLike, NDArray

from recbole_llmd.unlearning.mapping import knn
from recbole_llmd.unlearning.mapping.correction import Change, Correction, FittedMapping, MappingMatrix, axis
from recbole_llmd.unlearning.mapping.neighbours import Similarity

PARAMETERS: tuple[str, ...] = ("k", "alpha", "beta", "q", "knn_method")
MATRIX = "w"
TOLERANCE = {"float32": 0.0}
REQUIRED: dict[str, Any] = {}

USERS = 1024  # whose scores are compared at a time

Floats = NDArray[np.float32]


class AsymmetricScores(knn.Scores):
    """The scores where they are asked for, normalised by ``beta`` and to the power ``q``.

    >>> X = sp.csr_matrix([[0, 0], [0, 2]], dtype=np.float32)
    >>> w = sp.csc_matrix([[0, 0], [3, 0]], dtype=np.float32)
    >>> scores = AsymmetricScores(X, w, {"beta": 1.0, "q": 2, "knn_method": "item"})
    >>> round(float(scores[1, 0]), 5)  # (2·3 / 2²)²
    2.25
    """

    def __init__(self, X: sp.csr_matrix, w: MappingMatrix, params: Mapping[str, Any]) -> None:
        super().__init__(*knn.factors(X, w, params))
        self._X, self._w, self._params = X, w, params

    @functools.cached_property
    def _norms(self) -> tuple[Floats, Floats]:
        """The factors of the users and of the items."""
        sums = [(self._X, 1), (self._w, 1)] if axis(self._params) else [(self._w, 1), (self._X, 0)]
        of_users, of_items = (np.sqrt(np.asarray(S.power(2).sum(axis=along)).ravel()) for S, along in sums)
        beta = self._params["beta"]
        return of_users ** (2 * beta), of_items ** (2 * (1 - beta))

    def rows(self, users: Any) -> sp.csr_matrix:
        """The scores of ``users`` [m], CSR [m, n_items]."""
        S = super().rows(users).tocsr()
        of_users, of_items = self._norms
        own = np.repeat(np.atleast_1d(of_users[users]), np.diff(S.indptr))
        S.data = (S.data * (1 / (own * of_items[S.indices] + 1e-6))) ** self._params["q"]
        return S


def _asymmetric(sums: Floats, params: Mapping[str, Any]) -> Similarity:
    return Similarity(sums ** params["alpha"], sums ** (1 - params["alpha"]))


ASYMMETRIC = knn.Kind(1, _asymmetric)


def fit(X: sp.csr_matrix, params: Mapping[str, Any], dtype: DTypeLike = np.float32) -> MappingMatrix:
    """The similarities w (CSC [n_items, n_items], by users CSR [n_users, n_users]; float32, which decides ties)."""
    return knn.fit(X, params, ASYMMETRIC)


def correct(fitted: FittedMapping, change: Change, tolerance: float) -> Correction:
    """The similarities w after the change: those of the touched items computed and merged into the other columns.

    Raises:
        MappingMismatch: if w is not that of X but for ties (checked at the first correction of a model).
    """
    return knn.correct(fitted, change, ASYMMETRIC)


def trained_on(stored: Mapping[str, Any], X: sp.csr_matrix, params: Mapping[str, Any]) -> bool:
    """Whether RecBole's stored scores are those of X and w."""
    w, scores = sp.csr_matrix(stored["w"]), sp.csr_matrix(stored["pred_mat"])
    left, right = knn.factors(X, w, params)
    if scores.shape != X.shape or left.shape[1] != right.shape[0]:
        return False
    expected = AsymmetricScores(X, w, params)
    blocks = (slice(first, first + USERS) for first in range(0, X.shape[0], USERS))
    return all(_alike(scores[users], expected.rows(users)) for users in blocks)


def derived(X: sp.csr_matrix, B: MappingMatrix, params: Mapping[str, Any]) -> dict[str, Any]:
    """The scores that RecBole's AsymKNN keeps."""
    return {"pred_mat": AsymmetricScores(X, B, params)}


def _alike(scores: sp.csr_matrix, expected: sp.csr_matrix) -> bool:
    difference = abs(scores - expected)
    return bool(difference.max() <= 1e-4 * max(expected.max(), 1e-6)) if expected.nnz or scores.nnz else True
