"""EASE (Steck, WWW 2019, "Embarrassingly Shallow Autoencoders for Sparse Data"): fit and exact low-rank correction.

G = XᵀX + λI, P = G⁻¹, B = I - P·diag(1/P_jj) with diag(B) = 0. X and B determine P:

    P_jj = 1 / (G_jj - (G·B)_jj),   P = (I - B)·diag(P_jj)

A change of X changes G by U·S·Uᵀ of low rank with S⁻¹ = S, and P by Woodbury's identity:

    P' = P - W·K⁻¹·Wᵀ,   W = P·U,   K = S + Uᵀ·P·U

Between items that X' no longer connects (an item that nobody has any more, for one) P' is zero. There the identity
would leave rounding residues, which are made from what was forgotten and tell it: they are set to zero.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import scipy.sparse as sp
from numpy.typing import DTypeLike, NDArray

from recbole_llmd.errors import MappingMismatch, UnsolvedError
from recbole_llmd.unlearning.mapping.components import Separation, separation
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

Matrix = NDArray[Any]
Float64 = NDArray[np.float64]


def fit(X: sp.csr_matrix, params: Mapping[str, Any], dtype: DTypeLike = np.float32) -> Matrix:
    """B [n_items, n_items], an array of ``dtype``; n_items³ operations (Cholesky) and no second n_items² array."""
    P = gram(X, dtype)
    n = len(P)
    P[np.diag_indices(n)] += params["reg_weight"]
    cholesky_inverse(P)
    diagonal = P.diagonal().copy()
    for first, stop in _ranges(n, 512):  # mirror the upper triangle by blocks
        square = P[first:stop, first:stop]
        square[:] = np.triu(square) + np.triu(square, 1).T
        P[stop:, first:stop] = P[first:stop, stop:].T
    P /= -diagonal
    np.fill_diagonal(P, 0)
    return P


def correct(fitted: FittedMapping, change: Change, tolerance: float) -> Correction:
    """B after the change: updated in place, or fitted anew where that is cheaper or the update is not exact enough.

    Extra memory: blocks and factors [rank, n_items] for an update, and rows and columns of the items that are no longer
    connected with others; one [n_items, n_items] array for a fit.

    Raises:
        MappingMismatch: if B is not the solution of X (checked at the first correction of a model).
        UnsolvedError: if even a fit leaves a residual above ``tolerance``.
    """
    B, weight = np.asarray(fitted.B), fitted.params["reg_weight"]
    diagonal = _diagonal(fitted.X, B, weight, fitted.cache, tolerance)
    factors, signature = low_rank(change, fitted.X)
    rank = len(signature)
    estimates: dict[str, float] = {
        "low-rank update": low_rank_seconds(len(B), rank, factors.nnz, B.dtype),
        "refit": refit_seconds(len(B), B.dtype),
    }
    if estimates["refit"] < estimates["low-rank update"] or rank >= len(B):
        return refit(change.X, fitted.params, B.dtype, tolerance, estimates)
    image, solved, after = woodbury(B, diagonal, factors, signature)
    if not (np.isfinite(after).all() and (after > 0).all()):
        return refit(change.X, fitted.params, B.dtype, tolerance, estimates, "the update was singular")
    apart = separation(change.X, np.unique(fitted.X[change.users].indices))
    if len(apart.items):
        after[apart.alone] = 1 / (_squares(change.X, apart.alone) + weight)
    solved, scale = (solved / after).astype(B.dtype), (diagonal / after).astype(B.dtype)
    update, probes = _Update(B, image, solved, scale, apart), _probes(len(B))
    answer = update.write(after, probes)
    try:
        error = residual(change.X, weight, answer, probes)
        if error <= tolerance:
            estimates["rank"] = rank
            return Correction(fitted.B, "low-rank update", estimates, error, tolerance, {"diagonal": after})
        reason = f"residual {error:.1e} of the update above {tolerance:.0e}"
        return refit(change.X, fitted.params, B.dtype, tolerance, estimates, reason)
    except BaseException:
        update.undo(update.blocks)
        raise


def trained_on(stored: Mapping[str, Any], X: sp.csr_matrix, params: Mapping[str, Any]) -> bool:
    """Whether the interactions stored with RecBole's model are X."""
    return holds_interactions(stored, X)


def derived(X: sp.csr_matrix, B: MappingMatrix, params: Mapping[str, Any]) -> dict[str, Any]:
    """Nothing: the model keeps X and B alone."""
    return {}


def low_rank(change: Change, X: sp.csr_matrix) -> tuple[sp.csr_matrix, Float64]:
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
    signature: Float64 = np.kron(np.array([[0.0, 1.0], [1.0, 0.0]]), np.eye(t))
    mixed = change.delta[:, change.items].T.astype(np.float64) @ ((before + after) * 0.5)
    return sp.vstack([units, mixed]).tocsr(), signature


def inverse_diagonal(X: sp.csr_matrix, B: Matrix, weight: float) -> Float64:
    """P_jj = 1 / (G_jj - (G·B)_jj), [n_items] in float64, from the entries of XᵀX."""
    n = X.shape[1]
    product, counts = np.zeros(n), np.zeros(n)
    for first, block in gram_rows(X.astype(np.float64)):
        block = block.tocoo()
        product += np.bincount(block.col, block.data * B[first + block.row, block.col], n)
        on_diagonal = block.row + first == block.col
        counts[block.col[on_diagonal]] = block.data[on_diagonal]
    return 1 / (counts + weight - product)


def woodbury(
    B: Matrix, diagonal: Float64, factors: sp.csr_matrix, signature: Float64
) -> tuple[Matrix, Float64, Float64]:
    """Wᵀ = Uᵀ·P [rank, n_items] in B's dtype; K⁻¹·Wᵀ and the diagonal of P' [n_items] in float64 (NaN if singular)."""
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

    def solve(ranges: Iterable[tuple[int, int]]) -> None:
        # BLAS's own threads would wait busily for the next call, at the expense of the update's.
        for first, stop in ranges:
            np.matmul(inverse, image[:, first:stop], out=solved[:, first:stop])

    in_parallel(solve, _ranges(len(B), 1024))
    return image, solved, diagonal - np.einsum("rj,rj->j", image, solved)


def residual(X: sp.csr_matrix, weight: float, answer: Float64, probes: Float64) -> float:
    """The largest |G·answer - e| / |e| over the probes e, where answer should be G⁻¹·e."""
    image = X.T @ (X @ answer) + weight * answer
    return float((np.linalg.norm(image - probes, axis=0) / np.linalg.norm(probes, axis=0)).max())


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
        UnsolvedError: if the residual is above ``tolerance``.
    """
    B, weight = fit(X, params, dtype), params["reg_weight"]
    diagonal, probes = inverse_diagonal(X, B, weight), _probes(len(B))
    error = residual(X, weight, _inverse_times(probes, B, diagonal), probes)
    if not error <= tolerance:
        raise UnsolvedError(
            f"residual {error:.1e} of a fit in {B.dtype} above {tolerance:.0e}; a larger reg_weight "
            f"or float64 is needed"
        )
    notes = (f"fitted anew: {reason}",) if reason else ()
    return Correction(B, "refit", estimates, error, tolerance, {"diagonal": diagonal}, notes)


@dataclass(frozen=True)
class _Update:
    """B' = B·diag(P_jj / P'_jj) + W·K⁻¹·Wᵀ·diag(1/P'_jj), zero on the diagonal and between items apart, over B.

    Attributes:
        B: [n_items, n_items], written in place.
        image: Wᵀ [rank, n_items].
        solved: K⁻¹·Wᵀ·diag(1/P'_jj) [rank, n_items].
        scale: P_jj / P'_jj [n_items].
        apart: the items that the change separates from others.
        rows, columns: B's former rows and columns of the items apart, whose zeros cannot be undone by computing.
    """

    B: Matrix
    image: Matrix
    solved: Matrix
    scale: Matrix
    apart: Separation
    rows: Matrix = field(init=False)
    columns: Matrix = field(init=False)

    def __post_init__(self) -> None:
        if len(self.solved) == 1:  # NumPy gives products over an inner dimension of 1 to no BLAS
            for name in ("image", "solved"):
                factor = getattr(self, name)
                object.__setattr__(self, name, np.vstack([factor, np.zeros_like(factor)]))
        object.__setattr__(self, "rows", self.B[self.apart.items])
        object.__setattr__(self, "columns", self.B[:, self.apart.items])

    @property
    def blocks(self) -> list[tuple[int, int]]:
        """B's rows, a block at a time."""
        # A product of higher rank wants more rows at a time than fit the cache: BLAS copies the other factor each time.
        fitting = BLOCK_BYTES // (self.B.itemsize * len(self.B))
        return _ranges(len(self.B), min(len(self.B), max(1, fitting, min(len(self.solved), 256))))

    def write(self, after: Float64, probes: Float64) -> Float64:
        """Write B' over B; P' has the diagonal ``after``.

        Returns:
            P'·probes [n_items, PROBES], computed on the way from the numbers written.
        """
        answer: Float64 = after[:, None] * probes
        weighted = answer.astype(self.B.dtype)
        blocks: list[tuple[int, int]] = self.blocks
        written: list[tuple[int, int]] = []

        def write_blocks(shared: Iterable[tuple[int, int]]) -> None:
            buffer = np.empty((blocks[0][1], len(self.B)), self.B.dtype)
            for first, stop in shared:
                block, added = self.B[first:stop], buffer[: stop - first]
                np.matmul(self.image[:, first:stop].T, self.solved, out=added)
                written.append((first, stop))  # from here on the block can be undone
                block *= self.scale
                block += added
                block[np.arange(stop - first), np.arange(first, stop)] = 0
                self._separate(block, first, stop)
                answer[first:stop] -= block @ weighted

        try:
            in_parallel(write_blocks, blocks)
        except BaseException:
            self.undo(written)
            raise
        return answer

    def _separate(self, block: Matrix, first: int, stop: int) -> None:
        """Set the rows ``first`` to ``stop`` of B to zero between items that nothing connects."""
        items, labels = self.apart.items, self.apart.labels
        if len(items):
            block[:, items] = np.where(labels[first:stop, None] == labels[items], block[:, items], 0)
            here = items[np.searchsorted(items, first) : np.searchsorted(items, stop)]
            block[here - first] = np.where(labels[here, None] == labels, block[here - first], 0)

    def undo(self, blocks: Iterable[tuple[int, int]]) -> None:
        """Restore the written ``blocks`` of B, to rounding."""
        for first, stop in blocks:
            self.B[first:stop] = (self.B[first:stop] - self.image[:, first:stop].T @ self.solved) / self.scale
            self.B[np.arange(first, stop), np.arange(first, stop)] = 0
        self.B[self.apart.items], self.B[:, self.apart.items] = self.rows, self.columns


def _diagonal(X: sp.csr_matrix, B: Matrix, weight: float, cache: Mapping[str, Any], tolerance: float) -> Float64:
    """P_jj of the model as it stands: remembered, or computed and checked by a residual probe."""
    if "diagonal" in cache:
        known = cache["diagonal"]
        return np.append(known, np.full(len(B) - len(known), 1 / weight))  # new items: G_jj = λ, nothing else
    diagonal, probes = inverse_diagonal(X, B, weight), _probes(len(B))
    error = residual(X, weight, _inverse_times(probes, B, diagonal), probes)
    if not error <= tolerance:
        raise MappingMismatch(
            f"residual |G·P·e - e| / |e| = {error:.1e} above {tolerance:.0e} at reg_weight = {weight}"
        )
    return diagonal


def _inverse_times(probes: Float64, B: Matrix, diagonal: Float64) -> Float64:
    """P·probes, P = (I - B)·diag(P_jj)."""
    weighted = diagonal[:, None] * probes
    product: Float64 = weighted - B @ weighted.astype(B.dtype)
    return product


def _squares(X: sp.csr_matrix, items: NDArray[np.int64]) -> Float64:
    """(XᵀX)_jj of ``items``."""
    columns = X[:, items].astype(np.float64)
    return np.asarray(columns.power(2).sum(axis=0), np.float64).ravel()


def _ranges(n: int, step: int) -> list[tuple[int, int]]:
    return [(first, min(first + step, n)) for first in range(0, n, step)]


def _probes(n: int) -> Float64:
    """Fixed vectors of ±1, [n, PROBES]."""
    return np.random.default_rng(0).choice([-1.0, 1.0], (n, PROBES))
