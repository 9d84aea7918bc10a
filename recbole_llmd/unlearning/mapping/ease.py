"""EASE (Steck, WWW 2019, "Embarrassingly Shallow Autoencoders for Sparse Data"): fit and exact low-rank correction.

G = XᵀX + λI, P = G⁻¹, B = I - P·diag(1/P_jj) with diag(B) = 0. X and B determine P:

    P_jj = 1 / (G_jj - (G·B)_jj),   P = (I - B)·diag(P_jj)

A change of X changes G by U·S·Uᵀ of low rank with S⁻¹ = S, and P by Woodbury's identity:

    P' = P - W·K⁻¹·Wᵀ,   W = P·U,   K = S + Uᵀ·P·U
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import scipy.sparse as sp

from recbole_llmd.errors import MappingMismatch, UnsolvedError
from recbole_llmd.unlearning.mapping.correction import (
    Change,
    Correction,
    FittedMapping,
    MappingMatrix,
    gram,
    gram_rows,
    holds_interactions,
)
from recbole_llmd.unlearning.mapping.cost_model import cholesky_inverse, low_rank_seconds, refit_seconds
from recbole_llmd.unlearning.mapping.threads import in_parallel

PARAMETERS: tuple[str, ...] = ("reg_weight",)
MATRIX = "item_similarity"
TOLERANCE = {"float32": 1e-4, "float64": 1e-8}
REQUIRED: dict[str, Any] = {}

BLOCK_BYTES = 1 << 20  # of B at a time: it stays in a core's cache between its reads and writes
PROBES = 2


def fit(X, params, dtype=np.float32):
    """B [n_items, n_items], an array of ``dtype``; n_items³ operations (Cholesky) and no second n_items² array."""
    P = gram(X, dtype)
    n = len(P)
    P[np.diag_indices(n)] += params["reg_weight"]
    cholesky_inverse(P)
    diagonal = P.diagonal().copy()
    for start in range(0, n, 512):  # mirror the upper triangle by blocks
        stop = min(start + 512, n)
        square = P[start:stop, start:stop]
        square[:] = np.triu(square) + np.triu(square, 1).T
        P[stop:, start:stop] = P[start:stop, stop:].T
    P /= -diagonal
    np.fill_diagonal(P, 0)
    return P


def correct(fitted, change, tolerance):
    """B after the change: updated in place, or fitted anew where that is cheaper or the update drifted.

    Extra memory: blocks and factors [rank, n_items] for an update, one [n_items, n_items] array for a fit.

    Raises:
        MappingMismatch: if B is not the solution of X (checked at the first correction of a model).
        UnsolvedError: if even a fit leaves a residual above ``tolerance``.
    """
    B, weight = np.asarray(fitted.B), fitted.params["reg_weight"]
    diagonal = _diagonal(fitted.X, B, weight, fitted.cache, tolerance)
    factors, signature = low_rank(change, fitted.X)
    rank = len(signature)
    estimates = {
        "low-rank update": low_rank_seconds(len(B), rank, factors.nnz, B.dtype),
        "refit": refit_seconds(len(B), B.dtype),
    }
    if estimates["refit"] < estimates["low-rank update"] or rank >= len(B):
        return _refit(change.X, fitted.params, B.dtype, tolerance, estimates)
    image, solved, after = _woodbury(B, diagonal, factors, signature)
    if not (np.isfinite(after).all() and (after > 0).all()):
        return _refit(change.X, fitted.params, B.dtype, tolerance, estimates, "the update was singular")
    solved = (solved / after).astype(B.dtype)
    scale = (diagonal / after).astype(B.dtype)
    probes = _probes(len(B))
    answer = _update(B, image, solved, scale, after, probes)
    try:
        residual = _residual(change.X, weight, answer, probes)
        if residual <= tolerance:
            return Correction(
                fitted.B, "low-rank update", {**estimates, "rank": rank}, residual, tolerance, {"diagonal": after}
            )
        return _refit(
            change.X,
            fitted.params,
            B.dtype,
            tolerance,
            estimates,
            f"residual {residual:.1e} of the update above {tolerance:.0e}",
        )
    except BaseException:
        _undo(B, image, solved, scale, _blocks(B, rank))
        raise


def trained_on(stored: Mapping[str, Any], X: sp.csr_matrix) -> bool:
    """Whether the interactions stored with RecBole's model are X."""
    return holds_interactions(stored, X)


def derived(X: sp.csr_matrix, B: MappingMatrix) -> dict[str, Any]:
    """Nothing: the model keeps X and B alone."""
    return {}


def low_rank(change, X):
    """Factors of G' - G = U·S·Uᵀ: Uᵀ (CSR [rank, n_items]) and S [rank, rank] with S⁻¹ = S.

    By users: U = [rows before, rows after], S = diag(-1, +1). By items, with D = X' - X and M = (X' + X) / 2:
    G' - G = DᵀM + MᵀD, so for the t columns in which D differs from zero U = [their unit vectors, MᵀD], S = [[0, I],
    [I, 0]]. The one of lower rank is taken: a popular item may be forgotten by thousands of users at rank 2.
    """
    after, before = change.X[change.users].astype(np.float64), X[change.users].astype(np.float64)
    lost, gained = before[np.diff(before.indptr) > 0], after[np.diff(after.indptr) > 0]
    by_users, by_items = lost.shape[0] + gained.shape[0], 2 * len(change.items)
    if by_users <= by_items:
        return (
            sp.vstack([lost, gained]).tocsr() if by_users else sp.csr_matrix((0, X.shape[1])),
            np.diag(np.repeat([-1.0, 1.0], [lost.shape[0], gained.shape[0]])),
        )
    t = len(change.items)
    units = sp.csr_matrix((np.ones(t), (np.arange(t), change.items)), shape=(t, X.shape[1]))
    mixed = change.delta[:, change.items].T.astype(np.float64) @ ((before + after) * 0.5)
    return sp.vstack([units, mixed]).tocsr(), np.kron([[0.0, 1.0], [1.0, 0.0]], np.eye(t))


def inverse_diagonal(X, B, weight):
    """P_jj = 1 / (G_jj - (G·B)_jj), [n_items] in float64, from the entries of XᵀX."""
    n = X.shape[1]
    product, counts = np.zeros(n), np.zeros(n)
    for start, block in gram_rows(X.astype(np.float64)):
        block = block.tocoo()
        product += np.bincount(block.col, block.data * B[start + block.row, block.col], n)
        on_diagonal = block.row + start == block.col
        counts[block.col[on_diagonal]] = block.data[on_diagonal]
    return 1 / (counts + weight - product)


def _diagonal(X, B, weight, cache, tolerance):
    """P_jj of the model as it stands: remembered, or computed and checked by a residual probe."""
    if "diagonal" in cache:
        known = cache["diagonal"]
        return np.append(known, np.full(len(B) - len(known), 1 / weight))  # new items: G_jj = λ, nothing else
    diagonal = inverse_diagonal(X, B, weight)
    probes = _probes(len(B))
    answer = diagonal[:, None] * probes - B @ (diagonal[:, None] * probes).astype(B.dtype)
    residual = _residual(X, weight, answer, probes)
    if not residual <= tolerance:
        raise MappingMismatch(
            f"residual |G·P·e - e| / |e| = {residual:.1e} above {tolerance:.0e} at reg_weight = {weight}"
        )
    return diagonal


def _woodbury(B, diagonal, factors, signature):
    """Wᵀ = Uᵀ·P [rank, n_items] in B's dtype; K⁻¹·Wᵀ and the diagonal of P' [n_items] in float64."""
    dtype = B.dtype
    dense = factors.toarray().astype(dtype)
    # Many entries: the product of dense arrays is faster.
    sparse = factors.nnz < 0.05 * dense.size
    image = (factors.astype(dtype) if sparse else dense) @ B
    np.subtract(dense, image, out=image)
    image *= diagonal.astype(dtype)
    capacitance = signature + factors @ image.T.astype(np.float64)
    solved = np.full(image.shape, np.nan)
    try:
        inverse = np.linalg.inv((capacitance + capacitance.T) / 2)  # twice as fast as solving for n_items
    except np.linalg.LinAlgError:
        return image, solved, solved[0]  # the caller refits

    def solve(blocks):  # BLAS's own threads would wait busily for the next call, at the expense of the update's
        for start, stop in blocks:
            np.matmul(inverse, image[:, start:stop], out=solved[:, start:stop])

    in_parallel(solve, _ranges(len(B), 1024))
    return image, solved, diagonal - np.einsum("rj,rj->j", image, solved)


def _blocks(B, rank):
    # A product of higher rank wants more rows at a time than fit the cache: BLAS copies the other factor at every call.
    rows = min(len(B), max(1, BLOCK_BYTES // (B.itemsize * len(B)), min(rank, 256)))
    return _ranges(len(B), rows)


def _ranges(n, step):
    return [(start, min(start + step, n)) for start in range(0, n, step)]


def _update(B, image, solved, scale, after, probes):
    """Write B' = B·diag(P_jj / P'_jj) + W·K⁻¹·Wᵀ·diag(1/P'_jj), zero on the diagonal, over B.

    Returns:
        P'·probes [n_items, PROBES], computed on the way from the numbers written.
    """
    if len(solved) == 1:  # NumPy gives products over an inner dimension of 1 to no BLAS
        image, solved = (np.vstack([part, np.zeros_like(part)]) for part in (image, solved))
    weighted = after[:, None] * probes
    answer, narrow = weighted.copy(), weighted.astype(B.dtype)
    blocks, written = _blocks(B, len(solved)), []

    def write(blocks_to_do):
        buffer = np.empty((blocks[0][1], len(B)), B.dtype)
        for start, stop in blocks_to_do:
            block, added = B[start:stop], buffer[: stop - start]
            np.matmul(image[:, start:stop].T, solved, out=added)
            written.append((start, stop))  # from here on nothing can fail
            block *= scale
            block += added
            block[np.arange(stop - start), np.arange(start, stop)] = 0
            answer[start:stop] -= block @ narrow

    try:
        in_parallel(write, blocks)
    except BaseException:
        _undo(B, image, solved, scale, written)
        raise
    return answer


def _undo(B, image, solved, scale, blocks):
    """Restore the written ``blocks`` of B, to rounding."""
    for start, stop in blocks:
        B[start:stop] = (B[start:stop] - image[:, start:stop].T @ solved) / scale
        B[np.arange(start, stop), np.arange(start, stop)] = 0


def _probes(n):
    """Fixed vectors of ±1, [n, PROBES]."""
    return np.random.default_rng(0).choice([-1.0, 1.0], (n, PROBES))


def _residual(X, weight, answer, probes):
    """max over the probes e of |G·answer - e| / |e|, where answer should be G⁻¹·e."""
    image = X.T @ (X @ answer) + weight * answer
    return float((np.linalg.norm(image - probes, axis=0) / np.linalg.norm(probes, axis=0)).max())


def _refit(X, params, dtype, tolerance, estimates, reason=None):
    B = fit(X, params, dtype)
    diagonal = inverse_diagonal(X, B, params["reg_weight"])
    probes = _probes(len(B))
    weighted = diagonal[:, None] * probes
    residual = _residual(X, params["reg_weight"], weighted - B @ weighted.astype(B.dtype), probes)
    if not residual <= tolerance:
        raise UnsolvedError(
            f"residual {residual:.1e} of a fit in {B.dtype} above {tolerance:.0e}; a larger reg_weight "
            f"or float64 is needed"
        )
    return Correction(
        B,
        "refit",
        estimates,
        residual,
        tolerance,
        {"diagonal": diagonal},
        (f"fitted anew: {reason}",) if reason else (),
    )
