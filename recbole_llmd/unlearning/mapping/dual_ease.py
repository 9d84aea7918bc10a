"""EASE by its dual, for more items than users: fit and exact low-rank correction in memory of users x users.

The model, its equations and its corrections are those of :mod:`~recbole_llmd.unlearning.mapping.ease`; B is held as
:mod:`~recbole_llmd.unlearning.mapping.dual_matrix` says. Corrections wait beside it in the space of items, in which
they are of low rank, and are written into K⁻¹ together.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import scipy.sparse as sp
from numpy.typing import DTypeLike

from recbole_llmd.unlearning.mapping import ease
from recbole_llmd.unlearning.mapping.correction import Change, Correction, FittedMapping
from recbole_llmd.unlearning.mapping.cost_model import dual_refit_seconds, dual_update_seconds
from recbole_llmd.unlearning.mapping.dual_matrix import CorrectedDual, DualMatrix
from recbole_llmd.unlearning.mapping.ease import MATRIX, PARAMETERS, REQUIRED, TOLERANCE, derived, trained_on

__all__ = [
    "MATRIX",
    "PARAMETERS",
    "REQUIRED",
    "TOLERANCE",
    "correct",
    "derived",
    "error_of",
    "fit",
    "fold",
    "refit",
    "trained_on",
]


def fit(X: sp.csr_matrix, params: Mapping[str, Any], dtype: DTypeLike = np.float32) -> DualMatrix:
    """B of X: n_users³ operations (Cholesky), one array [n_users, n_users] of ``dtype`` and none of n_items²."""
    return DualMatrix.of(X, params["reg_weight"], dtype)


def correct(fitted: FittedMapping, change: Change, tolerance: float) -> Correction:
    """B after the change, beside which the correction waits; fitted anew where that is cheaper or more exact.

    Extra memory: factors [rank, n_items], and one [n_users, n_users] array where corrections are written into K⁻¹, or
    for a fit.

    Raises:
        MappingMismatch: if B is not the solution of X (checked at the first correction of a model).
        UnsolvedError: if even a fit has a backward error above ``tolerance``.
    """
    B = CorrectedDual.of_dual(fitted.B, fitted.X)
    if "diagonal" not in fitted.cache or fitted.cache.get("stored"):
        ease.refuse_another(B, fitted, tolerance, _whole)
    if ease.connects_again(B, change):
        B = CorrectedDual.of_dual(B.folded(), fitted.X)
    factors, signature = ease.low_rank(change, fitted.X)
    (n_users, n_items), rank, estimates = change.X.shape, len(signature), dict[str, float]()
    if rank > n_users * ease.WORTH_COMPARING:
        estimates["low-rank update"] = dual_update_seconds(n_users, n_items, rank, B.dtype)
        estimates["refit"] = dual_refit_seconds(n_users, change.X.nnz, B.dtype)
        if estimates["refit"] < estimates["low-rank update"] or rank >= n_users:
            return refit(change.X, fitted.params, B.dtype, tolerance, estimates)
    return ease.updated(replace(B, X=change.X), (factors, signature), fitted, change, tolerance, estimates, refit)


def fold(B: CorrectedDual, X: sp.csr_matrix, params: Mapping[str, Any], tolerance: float) -> Correction:
    """B with what waits beside it written into K⁻¹; fitted anew where the errors of corrections have added up."""
    return ease.written(B, X, params, tolerance, refit)


def error_of(B: DualMatrix, X: sp.csr_matrix, params: Mapping[str, Any], profiles: sp.csr_matrix) -> float:
    """The backward error of B for X, over ``profiles`` [n, n_items] that were forgotten and over random vectors."""
    return ease.worst_error(CorrectedDual.of_dual(B, X), X, params["reg_weight"], profiles)


def refit(
    X: sp.csr_matrix,
    params: Mapping[str, Any],
    dtype: DTypeLike,
    tolerance: float,
    estimates: Mapping[str, float],
    reason: str | None = None,
) -> Correction:
    """B fitted on X, checked as an update is; ``reason`` says what else was tried before.

    Raises:
        UnsolvedError: if a fit solves nothing.
    """
    return ease.checked_refit(_whole(X, params, dtype), X, params, tolerance, estimates, reason)


def _whole(X: sp.csr_matrix, params: Mapping[str, Any], dtype: DTypeLike) -> CorrectedDual:
    return CorrectedDual.of_dual(fit(X, params, dtype), X)
