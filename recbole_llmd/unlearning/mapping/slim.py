"""SLIM (Ning and Karypis, ICDM 2011) as RecBole's SLIMElastic has it: scikit-learn's ElasticNet per item,

    1/(2N)·|x_j - Xc|² + alpha·l1_ratio·|c|₁ + ½·alpha·(1 - l1_ratio)·|c|²,   c_j = 0 if hide_item,

which times N is a column of :mod:`~recbole_llmd.unlearning.mapping.slim_columns`. N is the number of users who have
interactions, and one row of padding: what RecBole counts where all its users have. When a user comes or leaves with
everything, N and so every column changes. RecBole stops scikit-learn at a duality gap of 1e-4; here every column is
optimal to ``TOLERANCE``.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import scipy.sparse as sp
from numpy.typing import DTypeLike

from recbole_llmd.unlearning.mapping.correction import (
    Change,
    Correction,
    FittedMapping,
    MappingMatrix,
    holds_interactions,
)
from recbole_llmd.unlearning.mapping.slim_columns import Problem, concerned, of_present_users, solve

PARAMETERS: tuple[str, ...] = ("alpha", "l1_ratio", "positive_only", "hide_item")
MATRIX = "item_similarity"
TOLERANCE = {"float32": 1e-5, "float64": 1e-10}  # of the largest violation relative to G_jj; float32 rounds B itself
REQUIRED: dict[str, Any] = {}


def fit(X: sp.csr_matrix, params: Mapping[str, Any], dtype: DTypeLike = np.float32) -> sp.csc_matrix:
    """B (CSC [n_items, n_items] of ``dtype``)."""
    n = X.shape[1]
    C, _, _ = solve(_problem(X, params), sp.csc_matrix((n, n)), TOLERANCE["float64"])
    return C.astype(dtype)


def correct(fitted: FittedMapping, change: Change, tolerance: float) -> Correction:
    """B after the change: the columns concerned checked against their optimality conditions, the violated re-solved.

    Raises:
        UnsolvedError: if a column does not reach the tolerance.
    """
    columns = concerned(fitted, change)
    C, resolved, violation = solve(_problem(change.X, fitted.params), fitted.B, tolerance, columns)
    return Correction(
        C.astype(fitted.B.dtype),
        f"warm start: {resolved} of {C.shape[1]} columns re-solved",
        residual=violation,
        tolerance=tolerance,
        cache={"exact_for": change.X.shape},
    )


def trained_on(stored: Mapping[str, Any], X: sp.csr_matrix, params: Mapping[str, Any]) -> bool:
    """Whether the interactions stored with RecBole's model are X."""
    return holds_interactions(stored, X)


def derived(X: sp.csr_matrix, B: MappingMatrix, params: Mapping[str, Any]) -> dict[str, Any]:
    """Nothing: the model keeps X and B alone."""
    return {}


def _problem(X: sp.csr_matrix, params: Mapping[str, Any]) -> Problem:
    X = of_present_users(X)
    total = X.shape[0] * params["alpha"]
    return Problem(
        X=X.astype(np.float64),
        ridge=np.full(X.shape[1], total * (1 - params["l1_ratio"])),
        l1=total * params["l1_ratio"],
        positive=bool(params["positive_only"]),
        hollow=bool(params["hide_item"]),
    )
