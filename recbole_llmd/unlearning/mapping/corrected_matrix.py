"""EASE's mapping matrix with low-rank corrections that are not written into it yet.

To write a correction into B is a pass over all of its memory, whether it is an array or made of other matrices
(:class:`ImplicitMatrix`). A correction of rank r is kept instead as 2·r rows and applied where scores are asked for.
With P = (XᵀX + λI)⁻¹ and P₀ its value when B₀ was written,

    P = P₀ - LᵀR·D₀,    B = (B₀ + LᵀR)·diag(d₀/d), zero on the diagonal,    d = diag(P), d₀ = diag(P₀), D₀ = diag(d₀).

:meth:`CorrectedMatrix.folded` writes B. Nothing that is reachable from a :class:`CorrectedMatrix` is ever written
again, so that whoever reads one keeps reading the same matrix while the next is made.
"""

from __future__ import annotations

import functools
from abc import ABC, abstractmethod
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

import numpy as np
import scipy.sparse as sp
from numpy.typing import NDArray

from recbole_llmd.unlearning.mapping.threads import in_parallel

BLOCK_BYTES = 1 << 20  # of B at a time: it stays in a core's cache between its reads and writes
CAPACITY = 96  # rows of a new store

Matrix = NDArray[Any]
Float64 = NDArray[np.float64]
Numbers = NDArray[np.int64]


class Inverse(Protocol):
    """What EASE's algebra asks of P = (XᵀX + λI)⁻¹ [n, n], however it is held."""

    @property
    def shape(self) -> tuple[int, int]:
        """[n, n]."""

    @property
    def diagonal(self) -> Float64:
        """Of P [n]."""

    def inverse_rows(self, rows: sp.csr_matrix) -> Matrix:
        """rows·P [m, n] of sparse ``rows`` [m, n]."""


class ImplicitMatrix(ABC):
    """A mapping matrix [n, n] that is never an array: rows are multiplied by it, and columns of it are read.

    Nothing of it is ever written, so that a copy is itself.
    """

    __array_ufunc__ = None  # NumPy leaves products to __rmatmul__; SciPy does so with what is no sequence (no __len__)

    @property
    @abstractmethod
    def shape(self) -> tuple[int, int]:
        """[n, n]."""

    @property
    @abstractmethod
    def dtype(self) -> np.dtype[Any]:
        """Of the products."""

    @property
    @abstractmethod
    def arrays(self) -> tuple[NDArray[Any], ...]:
        """What it is made of, for its hash."""

    @abstractmethod
    def __rmatmul__(self, rows: Any) -> Matrix:
        """rows·B [m, n]."""

    @abstractmethod
    def __getitem__(self, index: Any) -> Matrix:
        """B[:, columns]."""

    @abstractmethod
    def grown(self, new_items: int) -> ImplicitMatrix:
        """The same with rows and columns of zeros for new items."""

    def toarray(self) -> Matrix:
        """B as an array [n, n]: for comparisons of small models."""
        return self[:, :]

    def copy(self) -> ImplicitMatrix:
        """Itself."""
        return self

    def __deepcopy__(self, memo: dict[int, Any]) -> ImplicitMatrix:
        return self


class _Rows:
    """Rows [capacity, n] that grow by appending: those that somebody reads stay where they are, as they are."""

    def __init__(self, capacity: int, n: int, dtype: np.dtype[Any]) -> None:
        self.memory = np.empty((capacity, n), dtype)
        self._claimed: dict[int, object] = {}  # by the number of rows before: whose the next rows are

    def appended(self, used: int, rows: Matrix) -> _Rows:
        """A store whose first ``used`` rows are this one's and whose next ones are ``rows``."""
        store, total, mine = self, used + len(rows), object()
        # One step of a dictionary decides between threads; a lock would stay closed where an interrupt comes.
        if total > len(self.memory) or self._claimed.setdefault(used, mine) is not mine:
            store = _Rows(max(total, CAPACITY), self.memory.shape[1], self.memory.dtype)
            store.memory[:used] = self.memory[:used]
        store.memory[used:total] = rows
        return store


@dataclass(frozen=True, eq=False)
class CorrectedMatrix:
    """B with corrections pending: what RecBole's EASE reads of its ``item_similarity``.

    RecBole multiplies sparse rows by it (here they may not repeat an entry) and reads columns of it. Pickled (a
    checkpoint), it is written as the array that it stands for, so that plain RecBole reads it and nothing of the
    corrections is left.

    Attributes:
        base: B₀ [n, n], an array or (in a subclass) an :class:`ImplicitMatrix`.
        base_diagonal, diagonal: d₀ and d [n], float64.
        rank: the rows of L and R.
        alone: items that nothing connects with another any more: their rows and columns of B are zero.

    >>> P = np.linalg.inv([[3.0, 1.0], [1.0, 2.0]])
    >>> B = CorrectedMatrix.of(np.array([[0, -P[0, 1] / P[1, 1]], [-P[1, 0] / P[0, 0], 0]]), P.diagonal())
    >>> W = np.array([[1.0, 1.0]]) @ P  # the user with both items leaves: P' = P - Wᵀ·(1/(-1 + uᵀPu))·W
    >>> after = B.corrected(W, W / (W.sum() - 1), P.diagonal() - W[0] ** 2 / (W.sum() - 1))
    >>> np.round(after.folded(), 12).tolist(), after.rank  # X'X + λI is diagonal then
    ([[0.0, 0.0], [0.0, 0.0]], 1)
    """

    base: Any
    base_diagonal: Float64
    diagonal: Float64
    rank: int = 0
    alone: Numbers = field(default_factory=lambda: np.zeros(0, np.int64))
    _left: _Rows | None = field(default=None, repr=False)
    _right: _Rows | None = field(default=None, repr=False)

    __array_ufunc__ = None  # NumPy leaves products to __rmatmul__; SciPy does so with what is no sequence (no __len__)

    @classmethod
    def of(cls, B: Matrix, diagonal: Float64) -> CorrectedMatrix:
        """B itself, with nothing pending; ``diagonal`` [n] is that of P."""
        B = np.asarray(B)
        return cls(B, diagonal, diagonal)

    @property
    def shape(self) -> tuple[int, int]:
        """[n, n]."""
        shape: tuple[int, int] = self.base.shape
        return shape

    @property
    def dtype(self) -> np.dtype[Any]:
        """B₀'s."""
        dtype: np.dtype[Any] = self.base.dtype
        return dtype

    @property
    def left(self) -> Matrix:
        """L [rank, n]."""
        return self._none if self._left is None else self._left.memory[: self.rank]

    @property
    def right(self) -> Matrix:
        """R [rank, n]."""
        return self._none if self._right is None else self._right.memory[: self.rank]

    def corrected(
        self, left: Matrix, right: Matrix, diagonal: Float64, alone: Numbers | None = None
    ) -> CorrectedMatrix:
        """The matrix of P - leftᵀ·right [r, n], with its ``diagonal``; ``alone``: the items that it separates."""
        n, dtype, kept = self.shape[0], self.dtype, self.rank
        right = right / self.base_diagonal
        stores = [
            (_Rows(CAPACITY, n, dtype) if store is None else store).appended(kept, rows)
            for store, rows in ((self._left, left), (self._right, right))
        ]
        return replace(
            self,
            diagonal=diagonal,
            rank=kept + len(left),
            alone=self.alone if alone is None else np.union1d(self.alone, alone),
            _left=stores[0],
            _right=stores[1],
        )

    def inverse_rows(self, rows: sp.csr_matrix) -> Matrix:
        """rows·P [m, n] of sparse ``rows`` [m, n], in B's dtype."""
        rows = rows.astype(self.dtype)
        kept = self._connected(rows)
        product = self._base_inverse_rows(kept)
        if self.rank:
            product -= (self._times_left(kept) @ self.right) * self.base_diagonal.astype(self.dtype)
        if len(self.alone):
            product[:, self.alone] = 0
            own = self.is_alone[rows.indices]
            items = rows.indices[own]
            product[row_numbers(rows)[own], items] = rows.data[own] * self.diagonal[items]
        return product

    def __rmatmul__(self, rows: Any) -> Matrix:
        """rows·B [m, n] of sparse or dense ``rows`` [m, n]: the scores of users with these interactions."""
        if not (sp.issparse(rows) and rows.format == "csr" and rows.dtype == self.dtype):
            rows = sp.csr_matrix(rows, dtype=self.dtype)
        rows = self._connected(rows)
        scores = times(rows, self.base)
        if self.rank:
            scores += self._times_left(rows) @ self.right
        scores *= self._scale
        if self.rank:
            scores[row_numbers(rows), rows.indices] -= rows.data * self._own[rows.indices]
        if len(self.alone):
            scores[:, self.alone] = 0
        return scores

    def __getitem__(self, index: Any) -> Any:
        all_rows = isinstance(index, tuple) and isinstance(index[0], slice) and index[0] == slice(None)
        if not (all_rows and len(index) == 2):
            return self.folded()[index]
        columns = np.arange(self.shape[0])[index[1]]
        part = (self.base[:, columns] + self.left.T @ self.right[:, columns]) * self._scale[columns]
        part[self.alone] = 0
        part[..., np.isin(columns, self.alone)] = 0
        part[columns, np.arange(part.shape[1]) if part.ndim == 2 else ...] = 0
        return part

    def folded(self, labels: Numbers | None = None) -> Any:
        """B as an array of its own [n, n]; zero between items of different ``labels`` [n], if there are any."""
        n = len(self.base)
        B = np.empty((n, n), self.dtype)
        scale = self._scale
        # A product of higher rank wants more rows at a time than fit the cache: BLAS copies the other factor each time.
        height = min(n, max(1, BLOCK_BYTES // (B.itemsize * n), min(self.rank, 256)))

        def write(blocks: Iterable[tuple[int, int]]) -> None:
            for first, stop in blocks:
                block = B[first:stop]
                np.matmul(self.left[:, first:stop].T, self.right, out=block)
                block += self.base[first:stop]
                block *= scale
                block[:, self.alone] = 0
                if labels is not None:
                    block[labels[first:stop, None] != labels] = 0
                block[np.arange(stop - first), np.arange(first, stop)] = 0

        in_parallel(write, [(first, min(first + height, n)) for first in range(0, n, height)])
        B[self.alone] = 0
        return B

    def __deepcopy__(self, memo: dict[int, Any]) -> CorrectedMatrix:
        return self

    def __reduce__(self) -> tuple[Any, ...]:
        return np.asarray, (self.folded(),)

    def _base_inverse_rows(self, rows: sp.csr_matrix) -> Matrix:
        """rows·P₀ [m, n]."""
        product: Matrix = rows.toarray() - times(rows, self.base)
        product *= self.base_diagonal.astype(self.dtype)
        return product

    @property
    def _none(self) -> Matrix:
        return np.empty((0, self.shape[0]), self.dtype)

    @functools.cached_property
    def _scale(self) -> Matrix:
        return (self.base_diagonal / self.diagonal).astype(self.dtype)

    @functools.cached_property
    def _own(self) -> Matrix:
        """The diagonal of LᵀR·diag(d₀/d), which is no part of B."""
        return ((self.base_diagonal - self.diagonal) / self.diagonal).astype(self.dtype)

    def _times_left(self, rows: sp.csr_matrix) -> Matrix:
        """rows·Lᵀ [m, rank]."""
        if rows.shape[0] == 1:
            one: Matrix = rows.data @ self.left[:, rows.indices].T
            return one[None]
        columns, place = np.unique(rows.indices, return_inverse=True)
        dense = np.zeros((rows.shape[0], len(columns)), self.dtype)
        dense[row_numbers(rows), place] = rows.data
        product: Matrix = dense @ self.left[:, columns].T
        return product

    def _connected(self, rows: sp.csr_matrix) -> sp.csr_matrix:
        """``rows`` without the items that are alone."""
        alone = self.is_alone[rows.indices]
        if alone.any():
            rows = rows.copy()
            rows.data[alone] = 0
        return rows

    @functools.cached_property
    def is_alone(self) -> NDArray[np.bool_]:
        """Whether an item is one of ``alone``, [n]."""
        is_alone = np.zeros(self.shape[0], bool)
        is_alone[self.alone] = True
        return is_alone


def row_numbers(rows: sp.csr_matrix) -> Numbers:
    """The row of every entry."""
    return np.repeat(np.arange(rows.shape[0]), np.diff(rows.indptr))


def times(rows: sp.csr_matrix, matrix: Any) -> Matrix:
    """rows·matrix [m, n] of sparse ``rows`` [m, n]."""
    # Many entries: the product of dense arrays is faster.
    few = isinstance(matrix, ImplicitMatrix) or rows.nnz < 0.05 * rows.shape[0] * rows.shape[1]
    product: Matrix = (rows if few else rows.toarray()) @ matrix
    return product
