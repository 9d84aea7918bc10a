"""NCE-PLRec (Wu et al., SIGIR 2019) as RecBole's NCEPLRec has it: a ridge regression on singular vectors,

    D_ui = max(log(n / m_i^beta), 0) where user u has item i, else 0,   D ≈ U·diag(σ)·Vᵀ,   V [n_items, rank]
    L = V·diag(σ)^½,   Q = X·L,   W = (QᵀQ + reg_weight·I)⁻¹·Qᵀ·X,   scores X·B,   B = L·W

with m_i the sum of column i of X and n the number of users who have interactions, and one row of padding: what RecBole
counts where all its users have. B is held as L and W.

RecBole takes V from a randomized decomposition, which is not at the optimum and depends on its seed. Here V are the
``rank`` leading eigenvectors v of DᵀD (to σ² > 1e-13·σ₁², below which B feels nothing), by a dense decomposition or by
Lanczos iterations from a fixed start, such that |DᵀD·v - σ²·v| ≤ ``TOLERANCE``·σ₁². A model that RecBole fitted moves
there at its first correction.

A correction makes V anew and takes nothing from the V before, which therefore leaves no trace: it is the computation of
a fit on the interactions that are left. A block of vectors iterated from the V before takes longer than that: a user
who leaves changes n and with it all of D, the gap behind σ_rank is small, and Lanczos needs one product with DᵀD for
each vector and little more.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
import scipy.linalg
import scipy.sparse as sp
import torch
from numpy.typing import DTypeLike, NDArray
from scipy.sparse.linalg import LinearOperator, eigsh

from recbole_llmd.errors import MappingMismatch, UnsolvedError
from recbole_llmd.unlearning.mapping.correction import (
    Change,
    Correction,
    FittedMapping,
    MappingMatrix,
    holds_interactions,
)
from recbole_llmd.unlearning.mapping.low_rank_matrix import LowRankMatrix
from recbole_llmd.unlearning.mapping.slim_columns import of_present_users

PARAMETERS: tuple[str, ...] = ("beta", "rank", "reg_weight")
MATRIX = "item_similarity"
TOLERANCE = {"float64": 1e-12}  # of |DᵀD·v - σ²·v| relative to σ₁², and of the backward error of W
REQUIRED: dict[str, Any] = {}

BELONGS = 1e-9  # the backward error of W allowed to a model of RecBole's, which inverts
NEGLIGIBLE = 1e-13  # of σ₁²: smaller σ² are rounding
DETERMINED = 1e-9  # of σ₁²: a smaller gap behind σ_rank² leaves V to rounding
SMALL = 256  # users or items: always decomposed as a dense array
LANCZOS = 20  # times n_items·rank² operations, in which a dense decomposition does one
DENSE_ENTRIES = 1 << 25  # of D as an array
MISSED = 1e-2  # of σ²: how nearly the largest that is left out is found

Floats = NDArray[np.float64]


class Leading(NamedTuple):
    """The leading eigenvectors of DᵀD, and how well they are separated from the others.

    >>> found = leading(sp.csr_matrix(np.diag([1.0, 3.0, 2.0])), 2)
    >>> np.round(found.squares, 12).tolist(), np.round(np.abs(found.V), 12).tolist(), round(found.gap, 12)
    ([9.0, 4.0], [[0.0, 0.0], [1.0, 0.0], [0.0, 1.0]], 0.333333333333)
    """

    squares: Floats  # σ² [rank], descending
    V: Floats  # [n_items, rank]
    gap: float  # (σ_rank² - the next) / σ₁²


def fit(X: sp.csr_matrix, params: Mapping[str, Any], dtype: DTypeLike = np.float64) -> LowRankMatrix:
    """B [n_items, n_items] as its factors, in float64 (which RecBole's are in).

    Raises:
        numpy.linalg.LinAlgError: if QᵀQ + reg_weight·I is not positive definite.
    """
    return _fitted(X, params)[0]


def correct(fitted: FittedMapping, change: Change, tolerance: float) -> Correction:
    """B after the change: V of the interactions that are left, and the ridge regression on it.

    Raises:
        MappingMismatch: if W is not that of X (checked at the first correction of a model).
        UnsolvedError: if V or W does not reach the tolerance.
    """
    notes = []
    if "exact_for" not in fitted.cache or fitted.cache.get("stored"):
        error = ridge_error(fitted.B, fitted.X, fitted.params)
        if not error <= BELONGS:
            raise MappingMismatch(f"W has a backward error of {error:.1e} in the equations of X")
        off = eigen_residual(fitted.B, fitted.X, fitted.params)
        if not off <= tolerance:
            notes.append(f"V was off the singular vectors by a residual of {off:.1e}, as RecBole's are")
    try:
        B, gap = _fitted(change.X, fitted.params)
    except np.linalg.LinAlgError as error:
        raise UnsolvedError(f"W cannot be fitted: {error}. A larger reg_weight is needed.") from error
    residual = max(eigen_residual(B, change.X, fitted.params), ridge_error(B, change.X, fitted.params))
    if not residual <= tolerance:
        raise UnsolvedError(f"V and W have a residual of {residual:.1e} after a fit (tolerance {tolerance:.0e})")
    if gap < DETERMINED:
        notes.append(
            f"the gap behind singular value {B.left.shape[1]} is {gap:.0e} of σ₁²: the interactions hardly determine "
            "which vectors rank takes, and another solver may take others"
        )
    return Correction(B, "V and W anew", {}, residual, tolerance, {"exact_for": change.X.shape}, notes)


def trained_on(stored: Mapping[str, Any], X: sp.csr_matrix, params: Mapping[str, Any]) -> bool:
    """Whether the interactions stored with the model are X; plain RecBole stores none, and trains again at loading."""
    return not stored or holds_interactions(stored, X)


def derived(X: sp.csr_matrix, B: MappingMatrix, params: Mapping[str, Any]) -> dict[str, Any]:
    """Q [n_users, rank] and W [rank, n_items], whose product RecBole's scores are (of an array B, X and B)."""
    low_rank = isinstance(B, LowRankMatrix)
    Q, W = (X @ B.left, B.right) if low_rank else (X.toarray(), np.asarray(B))
    return {
        "user_embeddings": torch.from_numpy(np.asarray(Q, np.float64)),
        "item_embeddings": torch.from_numpy(np.asarray(W, np.float64)),
    }


def error_of(B: LowRankMatrix, X: sp.csr_matrix, params: Mapping[str, Any], profiles: sp.csr_matrix) -> float:
    """The largest of the residual of V, the backward error of W, and what V leaves out that is above σ_rank².

    What is left out is looked for from ``profiles`` [n, n_items] that were forgotten, and a random vector.
    """
    D, (squares, V) = weighted(X, params["beta"]), _vectors(B)
    error = max(_residual(D, squares, V), ridge_error(B, X, params))
    start = np.random.default_rng(0).standard_normal(X.shape[1]) + np.asarray(profiles.sum(axis=0)).ravel()
    largest = _largest_besides(D, V, start)
    full = len(squares) == params["rank"]
    allowed = (squares[-1] if full else NEGLIGIBLE * squares[0]) if len(squares) else 0.0
    first = squares[0] if len(squares) else 1.0
    return max(error, float((largest - allowed * (1 + MISSED)) / first))


def weighted(X: sp.csr_matrix, beta: float) -> sp.csr_matrix:
    """D of the users who have interactions and one row of padding, CSR float64 [n, n_items].

    >>> weighted(sp.csr_matrix([[0, 0], [2, 1], [0, 1]]), 1.0).toarray().round(3).tolist()  # log(3/2)
    [[0.0, 0.0], [0.405, 0.405], [0.0, 0.405]]
    """
    D = of_present_users(X).astype(np.float64)
    sums = np.asarray(D.sum(axis=0)).ravel()
    weights = np.zeros(len(sums))
    had = sums > 0
    weights[had] = np.maximum(np.log(D.shape[0] / np.power(sums[had], beta)), 0)
    D.data = weights[D.indices]
    D.eliminate_zeros()
    return D


def leading(D: sp.csr_matrix, rank: int) -> Leading:
    """The ``rank`` leading eigenvectors of DᵀD whose σ² is not negligible, zero where a column of D is."""
    n = D.shape[1]
    users, items = np.flatnonzero(np.diff(D.indptr)), np.unique(D.indices)
    squares, V = _decomposed(D[users][:, items], rank) if len(items) else (np.zeros(0), np.zeros((0, 0)))
    kept = int(np.count_nonzero(squares[:rank] > NEGLIGIBLE * squares[:1]))
    vectors = np.zeros((n, kept))
    vectors[items] = V[:, :kept]
    beyond = squares[kept] if kept == rank and kept < len(squares) else 0.0
    return Leading(squares[:kept], vectors, float((squares[kept - 1] - beyond) / squares[0]) if kept else 1.0)


def eigen_residual(B: LowRankMatrix, X: sp.csr_matrix, params: Mapping[str, Any]) -> float:
    """The largest |DᵀD·v - σ²·v| relative to σ₁², of the v and σ that the left factor of B holds."""
    return _residual(weighted(X, params["beta"]), *_vectors(B))


def ridge_error(B: LowRankMatrix, X: sp.csr_matrix, params: Mapping[str, Any]) -> float:
    """The largest |A·w - b| / (|A|·|w| + |b|) of W's columns w, with A = QᵀQ + reg_weight·I and b of QᵀX."""
    A, targets = _normal_equations(X, B.left, params["reg_weight"])
    size = scipy.linalg.norm(A) * np.linalg.norm(B.right, axis=0) + np.linalg.norm(targets, axis=0)
    error = np.linalg.norm(A @ B.right - targets, axis=0)
    return float(np.divide(error, size, out=np.where(error > 0, np.inf, 0.0), where=size > 0).max(initial=0))


def _fitted(X: sp.csr_matrix, params: Mapping[str, Any]) -> tuple[LowRankMatrix, float]:
    squares, V, gap = leading(weighted(X, params["beta"]), int(params["rank"]))
    left = V * squares**0.25
    A, targets = _normal_equations(X, left, params["reg_weight"])
    right = scipy.linalg.cho_solve(scipy.linalg.cho_factor(A), targets) if len(squares) else targets
    return LowRankMatrix(left, right), gap


def _normal_equations(X: sp.csr_matrix, left: Floats, weight: float) -> tuple[Floats, Floats]:
    X = X.astype(np.float64)
    Q = X @ left
    return Q.T @ Q + weight * np.eye(left.shape[1]), np.ascontiguousarray((X.T @ Q).T)


def _vectors(B: LowRankMatrix) -> tuple[Floats, Floats]:
    """σ² and V of B's left factor, V·diag(σ)^½."""
    sizes = np.linalg.norm(B.left, axis=0)
    return sizes**4, B.left / np.where(sizes > 0, sizes, 1)


def _residual(D: sp.csr_matrix, squares: Floats, V: Floats) -> float:
    errors = np.linalg.norm(D.T @ (D @ V) - V * squares, axis=0)
    return float(errors.max(initial=0) / squares.max(initial=0)) if squares.any() else 0.0


def _decomposed(D: sp.csr_matrix, rank: int) -> tuple[Floats, Floats]:
    """σ² descending and V: of one vector more than ``rank``, if there are so many."""
    fewer, n = min(D.shape), D.shape[1]
    few = fewer <= SMALL or (fewer**3 <= LANCZOS * n * rank**2 and D.shape[0] * n <= DENSE_ENTRIES)
    if few or 2 * rank + 3 >= n:
        return _dense(D)
    start = np.random.default_rng(0).standard_normal(n)
    operator = LinearOperator((n, n), matvec=lambda v: D.T @ (D @ v), dtype=np.float64)
    squares, V = eigsh(operator, rank + 1, v0=start, tol=0)
    squares, V = np.maximum(squares[::-1], 0), V[:, ::-1]
    # Of equal eigenvalues Lanczos may find one alone.
    missed = _largest_besides(D, V, start) > squares[-1] * (1 + MISSED) + NEGLIGIBLE * squares[0]
    return _dense(D) if missed else (squares, V)


def _dense(D: sp.csr_matrix) -> tuple[Floats, Floats]:
    _, sigma, Vt = scipy.linalg.svd(D.toarray(), full_matrices=False, overwrite_a=True, check_finite=False)
    return sigma**2, Vt.T


def _largest_besides(D: sp.csr_matrix, V: Floats, start: Floats) -> float:
    """The largest eigenvalue of DᵀD on the complement of V's columns, from the vector ``start``, to ``MISSED``."""

    def product(v: Floats) -> Floats:
        v = v - V @ (V.T @ v)
        v = D.T @ (D @ v)
        projected: Floats = v - V @ (V.T @ v)
        return projected

    n = D.shape[1]
    if n <= SMALL:
        return float(np.linalg.eigvalsh(product(np.eye(n)))[-1])
    operator = LinearOperator((n, n), matvec=product, dtype=np.float64)
    return float(eigsh(operator, 1, v0=start, tol=MISSED, return_eigenvectors=False)[0])
