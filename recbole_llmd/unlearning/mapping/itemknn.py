"""ItemKNN as RecBole fits it: the k largest cosine similarities of every item, or (UserKNN) of every user.

    s_ij = c_ij / (|x_i|·|x_j| + shrink + 1e-6),   c = XᵀX,   column j of w: the k largest s_ij, i ≠ j;  scores X·w

With ``knn_method: user``, c = XXᵀ, row j of w has the k largest, and the scores are w·X. Exact from the counts c, to
the bit, with ties at the k-th place decided by id (:mod:`~recbole_llmd.unlearning.mapping.neighbours`).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import scipy.sparse as sp
from numpy.typing import DTypeLike, NDArray

from recbole_llmd.unlearning.mapping import knn
from recbole_llmd.unlearning.mapping.correction import Change, Correction, FittedMapping, MappingMatrix
from recbole_llmd.unlearning.mapping.neighbours import Similarity

PARAMETERS: tuple[str, ...] = ("k", "shrink", "knn_method")
MATRIX = "w"
TOLERANCE = {"float32": 0.0}
REQUIRED: dict[str, Any] = {}


def _cosine(squares: NDArray[np.float32], params: Mapping[str, Any]) -> Similarity:
    norms = np.sqrt(squares)
    return Similarity(norms, norms, params["shrink"] or 0.0)


COSINE = knn.Kind(2, _cosine)


def fit(X: sp.csr_matrix, params: Mapping[str, Any], dtype: DTypeLike = np.float32) -> MappingMatrix:
    """The similarities w (CSC [n_items, n_items], by users CSR [n_users, n_users]; float32, which decides ties)."""
    return knn.fit(X, params, COSINE)


def correct(fitted: FittedMapping, change: Change, tolerance: float) -> Correction:
    """The similarities w after the change: those of the touched items computed and merged into the other columns.

    Raises:
        MappingMismatch: if w is not that of X but for ties (checked at the first correction of a model).
    """
    return knn.correct(fitted, change, COSINE)


def trained_on(stored: Mapping[str, Any], X: sp.csr_matrix, params: Mapping[str, Any]) -> bool:
    """Whether RecBole's stored scores are those of X and w, by a product with random weights of the items."""
    w, scores = sp.csr_matrix(stored["w"]), sp.csr_matrix(stored["pred_mat"])
    left, right = knn.factors(X, w, params)
    if scores.shape != X.shape or left.shape[1] != right.shape[0]:
        return False
    weights = np.random.default_rng(0).uniform(0.5, 1.5, X.shape[1])  # positive: nothing cancels out
    return bool(np.allclose(scores @ weights, left @ (right @ weights), rtol=1e-4, atol=1e-6))


def derived(X: sp.csr_matrix, B: MappingMatrix, params: Mapping[str, Any]) -> dict[str, Any]:
    """The scores that RecBole's ItemKNN keeps."""
    return {"pred_mat": knn.Scores(*knn.factors(X, B, params))}
