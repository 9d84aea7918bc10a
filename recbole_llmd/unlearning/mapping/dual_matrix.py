"""EASE's mapping matrix held in users x users: for catalogues with more items than users.

With K = XXᵀ + λI the identity of Woodbury gives, of P = (XᵀX + λI)⁻¹ and B = I - P·diag(1/P_jj),

    P = (I - Xᵀ·K⁻¹·X)/λ,    X·P = K⁻¹·X,    d_j = P_jj = (1 - x_jᵀ·K⁻¹·x_j)/λ,    x·B = x - (x·P)/d.

K⁻¹ [n_users, n_users], d [n_items] and X are all that is held; nothing of [n_items, n_items] is ever made. The
difference in the first equation loses digits where X'X is large beside λ: the systems with K are refined there against
the sparse X in float64. A row of X itself needs no difference (the second equation): it is recognised.

When X changes, K⁻¹ does by Woodbury's identity once more, in the space of users, and is exactly zero between users that
no chain of items connects.
"""

from __future__ import annotations

import functools
from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import scipy.sparse as sp
from numpy.typing import DTypeLike, NDArray

from recbole_llmd.unlearning.mapping import ease
from recbole_llmd.unlearning.mapping.components import user_components
from recbole_llmd.unlearning.mapping.corrected_matrix import (
    CorrectedMatrix,
    Float64,
    ImplicitMatrix,
    Matrix,
    Numbers,
    row_numbers,
)
from recbole_llmd.unlearning.mapping.correction import Change
from recbole_llmd.unlearning.mapping.cost_model import low_rank_seconds, refit_seconds
from recbole_llmd.unlearning.mapping.threads import in_parallel

REFINED = 1e-10  # of the right-hand side: the residual of systems with K
REFINEMENTS = 4
USERS = 64  # at a time
COLUMNS = 512  # at a time
PROBES = 4
CANCELLED = 1 / 8  # of 1: where less is left of the difference that gives d, it is refined


@dataclass(frozen=True, eq=False)
class DualMatrix(ImplicitMatrix):
    """EASE's B of the interactions X, by K⁻¹: what stands in the place of RecBole's ``item_similarity``.

    Rows are multiplied by it, and columns of it are read.

    Attributes:
        X: CSR [n_users, n_items].
        inverse: K⁻¹ [n_users, n_users].
        diagonal: d [n_items], float64.
        weight: λ.

    >>> X = sp.csr_matrix([[1.0, 1, 0, 0], [0, 1, 1, 1]])
    >>> P = np.linalg.inv(X.T @ X + 2 * np.eye(4))
    >>> B = DualMatrix.of(X, 2.0, "float64")
    >>> bool(np.allclose(X @ B, X @ (np.eye(4) - P / P.diagonal()))), B.inverse.shape
    (True, (2, 2))
    """

    X: sp.csr_matrix
    inverse: Matrix
    diagonal: Float64
    weight: float

    @classmethod
    def of(cls, X: sp.csr_matrix, weight: float, dtype: DTypeLike) -> DualMatrix:
        """The matrix of X; n_users³ operations (Cholesky), and n_users for each interaction."""
        inverse = ease.inverse_gram(X.T.tocsr(), weight, dtype)
        B = cls(X, inverse, _diagonal(X, inverse, weight), weight)
        popular = np.flatnonzero(weight * B.diagonal < CANCELLED)
        for first in range(0, len(popular), COLUMNS):
            items = popular[first : first + COLUMNS]
            columns = X[:, items].T.toarray()
            B.diagonal[items] = (1 - (B.solved(columns) * columns).sum(axis=1)) / weight
        return B

    @property
    def shape(self) -> tuple[int, int]:
        """[n_items, n_items]."""
        n = self.X.shape[1]
        return n, n

    @property
    def dtype(self) -> np.dtype[Any]:
        """K⁻¹'s, and that of scores."""
        dtype: np.dtype[Any] = self.inverse.dtype
        return dtype

    @property
    def arrays(self) -> tuple[NDArray[Any], ...]:
        """All that tells it from another of the same X."""
        return self.inverse, self.diagonal

    def inverse_rows(self, rows: sp.csr_matrix) -> Matrix:
        """rows·P [m, n_items] of sparse ``rows`` [m, n_items]."""
        users = self._whose(rows)
        product = np.empty(rows.shape, self.dtype)
        known, other = np.flatnonzero(users >= 0), np.flatnonzero(users < 0)
        if len(known):
            product[known] = self._times_X(self.inverse[users[known]])
        if len(other):
            rows = rows[other].astype(np.float64)
            rest = rows.toarray() - self._times_X(self.solved((rows @ self.X.T).toarray()))
            product[other] = rest / self.weight
        return product

    def solved(self, right: Matrix) -> Float64:
        """right·K⁻¹ [m, n_users], refined until the residual is ``REFINED`` of ``right``'s largest entry."""
        solution: Float64 = (right.astype(self.dtype) @ self.inverse).astype(np.float64)
        for _ in range(REFINEMENTS):
            residual = right - _each(self._wide, self._times_X(solution)) - self.weight * solution
            wrong = np.abs(residual).max(axis=1) > REFINED * np.abs(right).max(axis=1)
            if not wrong.any():
                break
            solution[wrong] += residual[wrong].astype(self.dtype) @ self.inverse
        return solution

    def __rmatmul__(self, rows: Any) -> Matrix:
        """rows·B [m, n_items] of sparse or dense ``rows`` [m, n_items]: the scores of users with these interactions."""
        rows = sp.csr_matrix(rows)
        scores = self.inverse_rows(rows)
        scores *= (-1 / self.diagonal).astype(self.dtype)
        scores[row_numbers(rows), rows.indices] += rows.data
        return scores

    def __getitem__(self, index: Any) -> Matrix:
        """B[:, columns]."""
        if not (isinstance(index, tuple) and len(index) == 2 and index[0] == slice(None)):
            raise TypeError(f"[{index!r}]: only columns can be read, B[:, columns].")
        chosen = np.arange(self.shape[0])[index[1]]
        columns = np.atleast_1d(chosen)
        part = np.empty((self.shape[0], len(columns)), self.dtype)
        for first in range(0, len(columns), COLUMNS):
            of = columns[first : first + COLUMNS]
            units = sp.csr_matrix((np.ones(len(of), self.dtype), (np.arange(len(of)), of)), (len(of), self.shape[0]))
            part[:, first : first + COLUMNS] = (self.inverse_rows(units) / -self.diagonal[of, None]).T
        part[columns, np.arange(len(columns))] = 0
        return part if np.ndim(chosen) else part[:, 0]

    def grown(self, new_items: int) -> DualMatrix:
        """The same with new items, which nobody has."""
        X = self.X.copy()
        X.resize(X.shape[0], X.shape[1] + new_items)
        return replace(self, X=X, diagonal=np.append(self.diagonal, np.full(new_items, 1 / self.weight)))

    def moved_to(self, X: sp.csr_matrix, diagonal: Float64) -> DualMatrix:
        """The matrix of other interactions X of as many users or more, whose P has this ``diagonal`` [n_items].

        A low-rank update of K⁻¹, or fitted anew where that is cheaper or the update is not exact.
        """
        factors, signature = self._change_to(X)
        n, rank, dtype = X.shape[0], len(signature), self.dtype
        if rank > n * ease.WORTH_COMPARING and (
            rank >= n or refit_seconds(n, dtype) < low_rank_seconds(n, rank, factors.nnz, dtype)
        ):
            return DualMatrix.of(X, self.weight, dtype)
        old = self._with_users(X.shape[0])
        image = old.solved(factors.toarray())
        capacitance = signature + factors @ image.T
        try:
            solved = np.linalg.inv((capacitance + capacitance.T) / 2) @ image
        except np.linalg.LinAlgError:
            return DualMatrix.of(X, self.weight, dtype)
        inverse = _less(old.inverse, image.astype(dtype), solved.astype(dtype), user_components(X))
        nobody = np.flatnonzero(np.diff(X.indptr) == 0)
        inverse[nobody, nobody] = 1 / self.weight
        probes = np.random.default_rng(0).standard_normal((PROBES, n))
        error = ease.backward_error(X.T.tocsr(), self.weight, probes.astype(dtype) @ inverse, probes)
        if not error <= ease.TOLERANCE[str(dtype)]:
            return DualMatrix.of(X, self.weight, dtype)
        return DualMatrix(X, inverse, diagonal, self.weight)

    def __reduce__(self) -> tuple[Any, ...]:
        return DualMatrix, (self.X, self.inverse, self.diagonal, self.weight)

    @functools.cached_property
    def _transposed(self) -> sp.csr_matrix:
        return self.X.T.tocsr().astype(np.float64)

    @functools.cached_property
    def _wide(self) -> sp.csr_matrix:
        return self.X.astype(np.float64)

    def _times_X(self, rows: Matrix) -> Matrix:
        """rows·X [m, n_items] of dense ``rows`` [m, n_users], in their dtype."""
        return _each(self._transposed, rows)

    @functools.cached_property
    def _sums(self) -> tuple[Float64, Numbers, Float64]:
        """Weights of the items; users in the order of their weighted sums; and these."""
        weights = np.random.default_rng(0).standard_normal(self.shape[0])
        sums = self.X @ weights
        order = np.argsort(sums)
        return weights, order, sums[order]

    def _whose(self, rows: sp.csr_matrix) -> Numbers:
        """The user whose row of X each of ``rows`` is [m], -1 for others."""
        weights, order, sums = self._sums
        users: Numbers = order[np.minimum(np.searchsorted(sums, rows @ weights), len(sums) - 1)]
        difference = (rows - self.X[users]).tocsr()
        difference.eliminate_zeros()
        users[np.diff(difference.indptr) > 0] = -1
        return users

    def _with_users(self, n_users: int) -> DualMatrix:
        """The same with further users, who have nothing."""
        n = self.X.shape[0]
        if n == n_users:
            return self
        X, inverse = self.X.copy(), np.zeros((n_users, n_users), self.dtype)
        X.resize(n_users, X.shape[1])
        inverse[:n, :n] = self.inverse
        inverse[np.arange(n, n_users), np.arange(n, n_users)] = 1 / self.weight
        return replace(self, X=X, inverse=inverse)

    def _change_to(self, X: sp.csr_matrix) -> tuple[sp.csr_matrix, Float64]:
        """Factors of K' - K in the space of users, as :func:`ease.low_rank` gives those of G' - G."""
        before = self.X
        if before.shape != X.shape:
            before = before.copy()
            before.resize(X.shape)
        delta = (X - before).tocsr()
        delta.eliminate_zeros()
        users, items = np.flatnonzero(np.diff(delta.indptr)), np.unique(delta.indices)
        transposed = Change(X.T.tocsr(), users=items, items=users, delta=delta.T.tocsr()[items])
        return ease.low_rank(transposed, before.T.tocsr())


@dataclass(frozen=True, eq=False)
class CorrectedDual(CorrectedMatrix):
    """A :class:`DualMatrix` with corrections pending beside it, as P₀ - LᵀR.

    Attributes:
        X: the interactions after the corrections, CSR [n_users, n_items].

    >>> X, left = sp.csr_matrix([[1.0, 1, 0, 0], [0, 1, 1, 1]]), sp.csr_matrix([[0.0, 0, 0, 0], [0, 1, 1, 1]])
    >>> B = CorrectedDual.of_dual(DualMatrix.of(X, 2.0, "float64"), left)
    >>> u = X[[0]]
    >>> W = B.inverse_rows(u)  # the first user leaves
    >>> solved = W / ((u @ W.T)[0, 0] - 1)
    >>> after = B.corrected(W, solved, B.diagonal - (W * solved)[0])
    >>> bool(np.allclose(left @ after, left @ DualMatrix.of(left, 2.0, "float64"))), after.folded().X is left
    (True, True)
    """

    X: sp.csr_matrix = None

    @classmethod
    def of_dual(cls, B: DualMatrix | CorrectedDual, X: sp.csr_matrix) -> CorrectedDual:
        """B with what waits beside it already, if anything, and the X that the next correction leads to."""
        if isinstance(B, CorrectedDual):
            return replace(B, X=X)
        return cls(B, B.diagonal, B.diagonal, X=X)

    def folded(self, labels: Numbers | None = None) -> DualMatrix:
        """The matrix of X with nothing pending; it finds out itself what is connected."""
        base: DualMatrix = self.base
        return base.moved_to(self.X, self.diagonal)

    def __reduce__(self) -> tuple[Any, ...]:
        return self.folded().__reduce__()

    def _base_inverse_rows(self, rows: sp.csr_matrix) -> Matrix:
        base: DualMatrix = self.base
        return base.inverse_rows(rows)


def _each(matrix: sp.csr_matrix, rows: Matrix) -> Matrix:
    """rows·matrixᵀ [m, n] of dense ``rows``, in their dtype, summed in float64 (``matrix``'s).

    One row after the other: each stays in a core's cache.
    """
    product = np.empty((len(rows), matrix.shape[0]), rows.dtype)
    for row, out in zip(rows, product, strict=True):
        out[:] = matrix @ row.astype(np.float64)
    return product


def _diagonal(X: sp.csr_matrix, inverse: Matrix, weight: float) -> Float64:
    """(1 - x_jᵀ·K⁻¹·x_j)/λ [n_items], in float64."""
    transposed, sums = X.T.tocsr().astype(np.float64), []

    def add(blocks: Iterable[int]) -> None:
        own = np.zeros(X.shape[1])
        for first in blocks:
            rows = X[first : first + USERS].astype(np.float64).tocoo()
            items, place = np.unique(rows.col, return_inverse=True)
            image = transposed[items] @ inverse[first : first + USERS].T.astype(np.float64)
            own += np.bincount(rows.col, rows.data * image[place, rows.row], len(own))
        sums.append(own)

    in_parallel(add, range(0, X.shape[0], USERS))
    diagonal: Float64 = (1 - np.sum(sums, axis=0)) / weight
    return diagonal


def _less(inverse: Matrix, left: Matrix, right: Matrix, labels: Numbers) -> Matrix:
    """inverse - leftᵀ·right in new memory, zero between users of different ``labels``."""
    n = len(inverse)
    result, largest = np.empty_like(inverse), np.bincount(labels, minlength=1).argmax()
    apart = np.flatnonzero(labels != largest)

    def write(blocks: Iterable[int]) -> None:
        for first in blocks:
            block, own = result[first : first + USERS], labels[first : first + USERS]
            np.matmul(left[:, first : first + USERS].T, right, out=block)
            np.subtract(inverse[first : first + USERS], block, out=block)
            block[:, apart] *= own[:, None] == labels[apart]
            for row in np.flatnonzero(own != largest):
                block[row, labels != own[row]] = 0

    in_parallel(write, range(0, n, USERS))
    return result
