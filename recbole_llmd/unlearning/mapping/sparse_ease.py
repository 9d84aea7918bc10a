"""EASE with a sparse B, for many items and many users: every item is regressed on its nearest neighbours alone.

    b_j = (G[S_j, S_j] + λI)⁻¹·G[S_j, j],   G = XᵀX,   b_ij = 0 elsewhere;   scores X·B

S_j: the ``k`` items of the largest cosine to item j among those that somebody has together with j, as ItemKNN chooses
them (:mod:`~recbole_llmd.unlearning.mapping.neighbours`: in float32, ties by id); all others where ``k`` reaches
n_items - 1. λ is ``reg_weight``.

With all others in S_j, b_j is the column of EASE (Steck, WWW 2019, arXiv 1905.03375), which is the ridge regression of
an item on all others. To regress an item on its neighbours alone is what fsSLIM does (Ning and Karypis, ICDM 2011),
with an l1 penalty too and without negative weights. Related, and another model: the sparse approximation of "Markov
Random Fields for Collaborative Filtering" (Steck, NeurIPS 2019, arXiv 1910.09645).

A correction merges the neighbours as ItemKNN does and solves the columns again whose neighbours, or whose part of G,
changed: those that have a changed item in S_j ∪ {j}, before or after. The bits are those of a fit.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import scipy.sparse as sp
from numpy.typing import DTypeLike

from recbole_llmd.errors import MappingMismatch, SettingsError, UnsolvedError
from recbole_llmd.unlearning.mapping import knn
from recbole_llmd.unlearning.mapping.correction import (
    Change,
    Correction,
    FittedMapping,
    MappingMatrix,
    holds_interactions,
    padded,
)
from recbole_llmd.unlearning.mapping.itemknn import COSINE
from recbole_llmd.unlearning.mapping.neighbour_regression import regress
from recbole_llmd.unlearning.mapping.sparse_rows import Numbers, Rows, canonical, with_parts

PARAMETERS: tuple[str, ...] = ("k", "reg_weight")
MATRIX = "item_similarity"
TOLERANCE = {"float32": 0.0, "float64": 0.0}
REQUIRED: dict[str, Any] = {}

ROUNDING = {"float32": 1e-6, "float64": 1e-9}  # of the largest entry: how far another machine's fit may be
NEARLY_ALL = 0.9  # of the columns


def fit(X: sp.csr_matrix, params: Mapping[str, Any], dtype: DTypeLike = np.float32) -> sp.csr_matrix:
    """B (CSR [n_items, n_items] of ``dtype``, solved in float64), with an entry for every neighbour.

    Raises:
        SettingsError: if ``k`` or ``reg_weight`` is out of range.
        numpy.linalg.LinAlgError: if a system is not positive definite to rounding.
    """
    _check(params)
    return _by_rows(_columns(X, _neighbours(X, params), params, dtype))


def correct(fitted: FittedMapping, change: Change, tolerance: float) -> Correction:
    """B after the change, to the bits of a fit.

    Raises:
        MappingMismatch: if B is not that of X but for rounding (checked by a fit at the first correction of a model).
        UnsolvedError: if a system is not positive definite to rounding.
    """
    params, cache = fitted.params, fitted.cache
    notes: tuple[str, ...] = ()
    _check(params)
    try:
        B = fitted.B
        if "exact_for" not in cache:
            B, notes = _own(fitted)
            if not len(change.users):
                return Correction(fitted.B, "nothing to correct", notes=notes)
        return _corrected(B, fitted, change, notes)
    except np.linalg.LinAlgError as error:
        raise UnsolvedError(f"B cannot be solved: {error} A larger reg_weight is needed.") from error


def trained_on(stored: Mapping[str, Any], X: sp.csr_matrix, params: Mapping[str, Any]) -> bool:
    """Whether the interactions stored with the model are X."""
    return holds_interactions(stored, X)


def derived(X: sp.csr_matrix, B: MappingMatrix, params: Mapping[str, Any]) -> dict[str, Any]:
    """Nothing: the model keeps X and B alone."""
    return {}


def _corrected(B: sp.csr_matrix, fitted: FittedMapping, change: Change, notes: tuple[str, ...]) -> Correction:
    """:func:`correct` of a B that is that of X."""
    params, X, n = fitted.params, change.X, change.X.shape[1]
    exact = {"exact_for": X.shape}
    columns = B.T.tocsr()
    touched = _listing(columns, change.items)
    if fitted.X.shape[1] - 1 <= params["k"] or np.count_nonzero(touched) > NEARLY_ALL * n:
        method = f"refit: {np.count_nonzero(touched)} of {n} columns touched"
        return Correction(fit(X, params, B.dtype), method, cache=exact, notes=notes)
    near = fitted.cache.get("neighbours")
    near = _neighbours(fitted.X, params).T if near is None else padded(near, n - near.shape[0])
    as_itemknn = FittedMapping(fitted.X, near, _of_neighbours(params), {**fitted.cache, "exact_for": fitted.X.shape})
    merged = knn.correct(as_itemknn, change, COSINE)
    after = merged.B.T.tocsr()
    again = np.flatnonzero(touched | _listing(after, change.items))
    on = Rows.of(after, again)
    values = regress(X, merged.cache["columns"], again, on, params["reg_weight"])
    columns = with_parts(columns, [(again, on._replace(data=values.astype(B.dtype)))])
    method = f"neighbours merged, {len(again)} of {n} columns solved"
    return Correction(_by_rows(columns), method, cache={**merged.cache, **exact, "neighbours": merged.B}, notes=notes)


def _listing(columns: sp.csr_matrix, items: Numbers) -> Any:
    """Which rows of CSR ``columns`` [n, n] list one of ``items`` or are one, a mask [n]."""
    n = columns.shape[0]
    changed = np.zeros(n, bool)
    changed[items] = True
    listing = changed.copy()
    listing[np.repeat(np.arange(n), np.diff(columns.indptr))[changed[columns.indices]]] = True
    return listing


def _check(params: Mapping[str, Any]) -> None:
    k, weight = params["k"], params["reg_weight"]
    if isinstance(k, bool) or not isinstance(k, int) or k < 1:
        raise SettingsError(f"k = {k!r}: must be a whole number of at least 1, the neighbours of an item.")
    if isinstance(weight, bool) or not isinstance(weight, (int, float)) or not 0 < weight < np.inf:
        raise SettingsError(f"reg_weight = {weight!r}: must be a number above 0.")


def _of_neighbours(params: Mapping[str, Any]) -> dict[str, Any]:
    return {"k": params["k"], "shrink": 0.0, "knn_method": "item"}


def _neighbours(X: sp.csr_matrix, params: Mapping[str, Any]) -> sp.csr_matrix:
    """S: the neighbours of an item are the entries of its row, CSR [n_items, n_items]."""
    n = X.shape[1]
    if params["k"] < n - 1:
        return knn.fit(X, _of_neighbours(params), COSINE).T
    others = np.nonzero(~np.eye(n, dtype=bool))[1]
    return canonical(np.ones(len(others), np.float32), others, np.arange(n + 1) * (n - 1), (n, n))


def _columns(X: sp.csr_matrix, near: sp.csr_matrix, params: Mapping[str, Any], dtype: DTypeLike) -> sp.csr_matrix:
    """The columns of B as rows, CSR."""
    on = Rows(near.data, near.indices, near.indptr)
    values = regress(X, X.T.tocsr(), np.arange(X.shape[1]), on, params["reg_weight"])
    return canonical(values.astype(dtype), near.indices, near.indptr, near.shape)


def _by_rows(columns: sp.csr_matrix) -> sp.csr_matrix:
    """B, whose columns these rows are: by rows, which scores read."""
    return columns.T.tocsr()


def _own(fitted: FittedMapping) -> tuple[sp.csr_matrix, tuple[str, ...]]:
    """The B that :func:`fit` gives for X, and a note; the model's must differ by rounding alone."""
    B = fit(fitted.X, fitted.params, fitted.B.dtype)
    largest = abs(B).max() if B.nnz else 0.0
    difference = abs(B - sp.csr_matrix(fitted.B)).max() if B.nnz or fitted.B.nnz else 0.0
    if not difference <= ROUNDING[str(B.dtype)] * largest:
        raise MappingMismatch(
            f"its weights are not those of the interactions at k = {fitted.params['k']}, reg_weight = "
            f"{fitted.params['reg_weight']}: the largest difference is {difference:.1e}"
        )
    return B, (f"B differed from a fit by up to {difference:.1e}: rounding of another machine",) if difference else ()
