"""ADMM SLIM (Steck et al., WSDM 2020), RecBole's ADMMSLIM: the problem that its iterations approach,

    ½·|X - XC|² + ½·lambda2·Σ_ij m_i^alpha·C_ij² + lambda1·|C|₁,   diag(C) = 0, C ≥ 0 if positive_only,

with m the items' mean of X, and X centred by m if center_columns. The mean is over the users who have interactions and
one row of padding: over RecBole's rows, where all its users have. Its columns are those of
:mod:`~recbole_llmd.unlearning.mapping.slim_columns` and are solved to ``TOLERANCE``. RecBole stops after k iterations
wherever they are (rho and k decide how far from the optimum, and its checkpoint keeps no dual to go on from), so a
model that RecBole fitted moves to the optimum at its first correction; :func:`fit` gives the optimum itself.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import scipy.sparse as sp
from numpy.typing import DTypeLike, NDArray

from recbole_llmd.unlearning.mapping.correction import Change, Correction, FittedMapping, MappingMatrix
from recbole_llmd.unlearning.mapping.slim_columns import Problem, concerned, of_present_users, solve

PARAMETERS: tuple[str, ...] = ("lambda1", "lambda2", "alpha", "positive_only", "center_columns")
MATRIX = "item_similarity"
TOLERANCE = {"float32": 1e-5, "float64": 1e-10}  # of the largest violation relative to G_jj; float32 rounds B itself
REQUIRED: dict[str, Any] = {}


def fit(X: sp.csr_matrix, params: Mapping[str, Any], dtype: DTypeLike = np.float32) -> NDArray[Any]:
    """B [n_items, n_items], an array of ``dtype``."""
    n = X.shape[1]
    C, _, _ = solve(_problem(X, params), sp.csc_matrix((n, n)), TOLERANCE["float64"])
    B: NDArray[Any] = C.astype(dtype).toarray()
    return B


def correct(fitted: FittedMapping, change: Change, tolerance: float) -> Correction:
    """B after the change: the columns concerned checked against their optimality conditions, the violated re-solved.

    Raises:
        UnsolvedError: if a column does not reach the tolerance.
    """
    # Centred, every column feels the change of an item's mean.
    columns = None if fitted.params["center_columns"] else concerned(fitted, change)
    C, resolved, violation = solve(_problem(change.X, fitted.params), fitted.B, tolerance, columns)
    return Correction(
        C.astype(fitted.B.dtype).toarray(),
        f"warm start: {resolved} of {C.shape[1]} columns re-solved",
        residual=violation,
        tolerance=tolerance,
        cache={"exact_for": change.X.shape},
    )


def trained_on(stored: Mapping[str, Any], X: sp.csr_matrix, params: Mapping[str, Any]) -> bool:
    """True: RecBole stores nothing of this model and trains it on X where it loads it."""
    return True


def derived(X: sp.csr_matrix, B: MappingMatrix, params: Mapping[str, Any]) -> dict[str, Any]:
    """The items' means [n_items] that RecBole's scores add back."""
    return {"item_means": np.asarray(of_present_users(X).mean(axis=0)).ravel()}


def _problem(X: sp.csr_matrix, params: Mapping[str, Any]) -> Problem:
    X = of_present_users(X).astype(np.float64)
    means = np.asarray(X.mean(axis=0)).ravel()
    return Problem(
        X=X,
        ridge=params["lambda2"] * np.power(means, params["alpha"]),
        l1=params["lambda1"],
        positive=bool(params["positive_only"]),
        hollow=True,
        means=means if params["center_columns"] else None,
    )
