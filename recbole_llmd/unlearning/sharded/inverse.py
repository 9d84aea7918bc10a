"""P = (XᵀX + λI)⁻¹ by rows over several processes: what each holds are its columns, too, since P is symmetric.

The matrix is inverted where it lies, by Gauss-Jordan elimination in panels of rows. With the pivot D = A[K, K] of the
rows K, every panel makes, in all rows outside K and with the A of before,

    A[K, :] ← D⁻¹·A[K, :],   A[K, K] ← D⁻¹,   A[:, J] ← A[:, J] - A[:, K]·D⁻¹·A[K, J],   A[:, K] ← -A[:, K]·D⁻¹

and after the last one A is the inverse (Higham, "Accuracy and Stability of Numerical Algorithms", 14.4). XᵀX + λI is
positive definite and so is every D: no row is exchanged. One process has K and sends D⁻¹·A[K, :] to the others, which
then need nothing but their own rows: 2·n³ operations by all together, n² numbers in one direction.

Between items that no chain of users connects every product is one with zero, and the result exactly zero.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import scipy.sparse as sp
from numpy.typing import DTypeLike, NDArray
from scipy.linalg import get_blas_funcs

from recbole_llmd.atomic_write import atomic_write
from recbole_llmd.unlearning.mapping.components import Separation
from recbole_llmd.unlearning.mapping.corrected_matrix import times
from recbole_llmd.unlearning.mapping.cost_model import cholesky_inverse
from recbole_llmd.unlearning.sharded.files import file_name, rows_in
from recbole_llmd.unlearning.sharded.processes import Processes

PANEL = 512  # rows
GRAM_ROWS = 64  # of XᵀX at a time
COLUMNS = 4096  # of a panel at a time, in float64

Matrix = NDArray[Any]
Float64 = NDArray[np.float64]


class ShardedInverse:
    """This process's rows of P [n_items, n_items], in memory or in a file of its own.

    A file has its name (``rows-<first>-<stop>.npy``) only while it is whole: between :meth:`begin` and :meth:`end` it
    is called ``.partial``.

    Attributes:
        first, stop: the rows are those from ``first`` up to ``stop``.
        block: they themselves, C-order [stop - first, n_items].
        diagonal: of all of P, float64 [n_items].

    >>> P = ShardedInverse(2, np.float64, Processes())
    >>> P.fit(sp.csr_matrix([[1.0, 1], [0, 1]]), 1.0)
    >>> bool(np.allclose(P.block @ [[2, 1], [1, 3]], np.eye(2))), P.diagonal.round(12).tolist()
    (True, [0.6, 0.4])
    """

    def __init__(self, n: int, dtype: DTypeLike, processes: Processes, folder: Path | None = None) -> None:
        self.processes, self.shape, self.dtype = processes, (n, n), np.dtype(dtype)
        self._starts = [n * rank // processes.size for rank in range(processes.size + 1)]
        self.first, self.stop = self._starts[processes.rank : processes.rank + 2]
        self.diagonal: Float64 = np.zeros(n)
        self.path = None if folder is None else folder / file_name(self.first, self.stop)
        self._named = False  # a file of that name that is there now is another's, and replaced
        shape = (self.stop - self.first, n)
        if folder is None:
            self.block = np.empty(shape, self.dtype)
        else:
            folder.mkdir(parents=True, exist_ok=True)
            self.block = np.asarray(np.lib.format.open_memmap(self._partial, "w+", self.dtype, shape))

    @property
    def own(self) -> slice:
        """The rows that this process holds."""
        return slice(self.first, self.stop)

    @property
    def ranges(self) -> list[tuple[int, int]]:
        """First row and end of what each process holds."""
        return list(zip(self._starts[:-1], self._starts[1:]))

    @property
    def _partial(self) -> Path:
        assert self.path is not None
        return self.path.with_suffix(".partial")

    def begin(self) -> None:
        """What is in the file is about to change."""
        if self.path is not None and self._named:
            os.replace(self.path, self._partial)
            self._named = False

    def end(self) -> None:
        """The file is whole again."""
        if self.path is not None:
            os.replace(self._partial, self.path)
            self._named = True

    def fit(self, X: sp.csr_matrix, weight: float) -> None:
        """Make P of X [n_users, n_items] and λ = ``weight``; memory beside the block: two panels [PANEL, n_items].

        Raises:
            numpy.linalg.LinAlgError: if XᵀX + λI is not positive definite to rounding, in all processes.
        """
        self.processes.together(lambda: self._write_gram(X, weight))
        for owner, (first, stop) in enumerate(self.ranges):
            for start in range(first, stop, PANEL):
                self._eliminate(owner, start, min(start + PANEL, stop))
        self.read_diagonal()

    def read_rows(self, folder: Path, ranges: Sequence[tuple[int, int]]) -> None:
        """Read the block from the files of ``folder``, which hold these ``ranges`` of rows; without communication.

        Raises:
            CheckpointError: if a file is missing or of another shape or type.
        """
        for first, stop in ranges:
            start, end = max(first, self.first), min(stop, self.stop)
            if start < end:
                rows = rows_in(folder, first, stop, self.shape[0], self.dtype)
                self.block[start - self.first : end - self.first] = rows[start - first : end - first]

    def write_rows(self, folder: Path) -> None:
        """Write the block into a file of ``folder``; without communication."""
        with atomic_write(folder / file_name(self.first, self.stop)) as temporary, open(temporary, "wb") as stream:
            np.save(stream, self.block)

    def inverse_rows(self, rows: sp.csr_matrix) -> Matrix:
        """rows·P [m, n] of sparse ``rows`` [m, n], the same in all processes: each reads those of its rows of P."""
        product = np.ascontiguousarray(times(rows[:, self.own].astype(self.dtype), self.block))
        self.processes.add(product)
        return product

    def subtract(self, left: Matrix, right: Matrix) -> None:
        """P - leftᵀ·right of left and right [r, n], in place; :meth:`read_diagonal` is next."""
        _subtract(self.block, np.ascontiguousarray(left[:, self.own].T), right.astype(self.dtype, copy=False))

    def separate(self, apart: Separation, squares: Float64, weight: float) -> None:
        """Set to zero what connects items ``apart`` with others, which rounding left; ``squares`` of those alone."""
        here = apart.items[(apart.items >= self.first) & (apart.items < self.stop)]
        others = np.setdiff1d(np.arange(self.first, self.stop), here)
        self.block[np.ix_(others - self.first, apart.items)] = 0
        for item in here:
            self.block[item - self.first, apart.labels != apart.labels[item]] = 0
        mine = (apart.alone >= self.first) & (apart.alone < self.stop)
        alone = apart.alone[mine]
        self.block[alone - self.first, alone] = 1 / (squares[mine] + weight)

    def read_diagonal(self) -> None:
        """Let all processes have the diagonal."""
        diagonal = np.zeros(self.shape[0])
        diagonal[self.own] = self.block[np.arange(self.stop - self.first), np.arange(self.first, self.stop)]
        self.processes.add(diagonal)
        self.diagonal = diagonal

    def _write_gram(self, X: sp.csr_matrix, weight: float) -> None:
        own = X[:, self.own].T.tocsr()
        for start in range(0, own.shape[0], GRAM_ROWS):
            self.block[start : start + GRAM_ROWS] = (own[start : start + GRAM_ROWS] @ X).toarray()
        self.block[np.arange(self.stop - self.first), np.arange(self.first, self.stop)] += weight

    def _eliminate(self, owner: int, first: int, stop: int) -> None:
        """One panel: the rows from ``first`` up to ``stop``, which the process ``owner`` has."""
        panel = np.empty((stop - first, self.shape[0]), self.dtype)
        here = slice(first - self.first, stop - self.first) if owner == self.processes.rank else slice(0, 0)
        if owner == self.processes.rank:
            _fill(panel, self.block[here], first)
        self.processes.broadcast(panel, owner)
        if not np.isfinite(panel[:, first:stop]).all():
            raise np.linalg.LinAlgError(f"X'X + λI is not positive definite in the rows from {first} to {stop}.")
        factor = self.block[:, first:stop].copy()
        self.block[:, first:stop] = 0
        factor[here] = 0
        _subtract(self.block, factor, panel)
        if owner == self.processes.rank:
            self.block[here] = panel


def _fill(panel: Matrix, rows: Matrix, first: int) -> None:
    """D⁻¹·``rows``, with D⁻¹ itself at D's place, into ``panel`` [b, n]; NaN if D is not positive definite.

    In float64: what a panel is wrong by goes into all rows.
    """
    pivot = slice(first, first + len(rows))
    inverse = rows[:, pivot].astype(np.float64)
    try:
        cholesky_inverse(inverse)
    except np.linalg.LinAlgError:
        inverse.fill(np.nan)  # the other processes are waiting for a panel
    inverse = np.triu(inverse) + np.triu(inverse, 1).T
    for start in range(0, rows.shape[1], COLUMNS):
        part = slice(start, start + COLUMNS)
        panel[:, part] = inverse @ rows[:, part]
    panel[:, pivot] = inverse


def _subtract(block: Matrix, left: Matrix, right: Matrix) -> None:
    """block -= left·right of C-ordered [m, n], [m, r] and [r, n], without another array [m, n]."""
    gemm = get_blas_funcs("gemm", (block, left, right))
    gemm(-1.0, right.T, left.T, beta=1.0, c=block.T, overwrite_c=1)  # transposed, they are what BLAS works on
