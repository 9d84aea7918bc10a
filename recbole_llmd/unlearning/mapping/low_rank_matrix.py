"""A mapping matrix of low rank, held as its two factors."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import scipy.sparse as sp
from numpy.typing import NDArray

from recbole_llmd.unlearning.mapping.corrected_matrix import ImplicitMatrix, Matrix


@dataclass(frozen=True, eq=False)
class LowRankMatrix(ImplicitMatrix):
    """B = left·right [n, n]: rows are multiplied by it, and columns of it are read.

    Pickled (a checkpoint), it is written as the pair of its arrays, so that plain RecBole reads it.

    Attributes:
        left: [n, rank].
        right: [rank, n].

    >>> B = LowRankMatrix(np.array([[1.0], [2.0]]), np.array([[3.0, 0.0]]))
    >>> B.toarray().tolist(), (sp.csr_matrix([[0.0, 1.0]]) @ B).tolist()
    ([[3.0, 0.0], [6.0, 0.0]], [[6.0, 0.0]])
    """

    left: Matrix
    right: Matrix

    @property
    def shape(self) -> tuple[int, int]:
        """[n, n]."""
        n = len(self.left)
        return n, n

    @property
    def dtype(self) -> np.dtype[Any]:
        """The factors'."""
        dtype: np.dtype[Any] = self.left.dtype
        return dtype

    @property
    def arrays(self) -> tuple[NDArray[Any], ...]:
        """Both factors, as they lie in memory."""
        return np.ascontiguousarray(self.left), np.ascontiguousarray(self.right)

    def __rmatmul__(self, rows: Any) -> Matrix:
        """rows·B [m, n] of sparse or dense ``rows`` [m, n]."""
        product: Matrix = (rows.tocsr() if sp.issparse(rows) else np.asarray(rows)) @ self.left @ self.right
        return product

    def __getitem__(self, index: Any) -> Matrix:
        """B[:, columns]."""
        if not (isinstance(index, tuple) and len(index) == 2 and index[0] == slice(None)):
            raise TypeError(f"[{index!r}]: only columns can be read, B[:, columns].")
        part: Matrix = self.left @ self.right[:, index[1]]
        return part

    def grown(self, new_items: int) -> LowRankMatrix:
        """The same with rows and columns of zeros for new items."""
        return LowRankMatrix(
            np.pad(self.left, ((0, new_items), (0, 0))),
            np.pad(self.right, ((0, 0), (0, new_items))),
        )

    def __copy__(self) -> LowRankMatrix:
        return self

    def __reduce__(self) -> tuple[Any, ...]:
        return tuple, ((self.left, self.right),)
