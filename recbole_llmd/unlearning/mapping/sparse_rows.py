"""Rows of CSR matrices taken out, edited and put back, by arrays: without SciPy's objects, which take long to make."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import scipy.sparse as sp
from numpy.typing import DTypeLike, NDArray

Numbers = NDArray[np.int64]


class Rows(NamedTuple):
    """Rows of a CSR matrix [m, n] as its three arrays; SciPy's objects take longer to make than most of this work.

    >>> Rows.of(sp.csr_matrix([[1, 0], [2, 3], [0, 4]]), np.array([1, 2])).data.tolist()
    [2, 3, 4]
    """

    data: NDArray[Any]
    indices: NDArray[Any]
    indptr: NDArray[Any]

    @classmethod
    def of(cls, S: sp.csr_matrix, numbers: Numbers) -> Rows:
        """The rows ``numbers`` of CSR S."""
        starts = S.indptr[numbers]
        lengths = S.indptr[numbers + 1] - starts
        indptr = running(lengths)
        places = np.arange(indptr[-1]) + np.repeat(starts - indptr[:-1], lengths)
        return cls(S.data[places], S.indices[places], indptr)

    @property
    def lengths(self) -> NDArray[Any]:
        """How many entries each row has, [m]."""
        return np.diff(self.indptr)

    @property
    def numbers(self) -> Numbers:
        """The row of every entry."""
        return np.repeat(np.arange(len(self.indptr) - 1), self.lengths)

    def matrix(self, n: int, dtype: DTypeLike) -> sp.csr_matrix:
        """CSR [m, n] of a type; the indices of a row ascend."""
        return canonical(self.data.astype(dtype), self.indices, self.indptr, (len(self.indptr) - 1, n))

    def kept(self, mask: NDArray[np.bool_]) -> Rows:
        """The entries where ``mask`` is true."""
        return Rows(self.data[mask], self.indices[mask], running(mask)[self.indptr])

    def chosen(self, mask: NDArray[np.bool_]) -> Rows:
        """The rows where ``mask`` [m] is true."""
        lengths = self.lengths
        entries = np.repeat(mask, lengths)
        return Rows(self.data[entries], self.indices[entries], running(lengths[mask]))


def running(lengths: NDArray[Any]) -> NDArray[np.int64]:
    """Sums of the first 0, 1, ... lengths."""
    sums = np.zeros(len(lengths) + 1, np.int64)
    np.cumsum(lengths, out=sums[1:])
    return sums


def with_parts(S: sp.csr_matrix, parts: Sequence[tuple[Numbers, Rows]]) -> sp.csr_matrix:
    """A copy of CSR S with rows replaced: for each of ``parts`` the rows numbered so by its rows.

    >>> S = sp.csr_matrix([[1, 0], [2, 3], [0, 4]])
    >>> with_parts(S, [(np.array([2, 0]), Rows.of(S, np.array([1, 2])))]).toarray().tolist()
    [[0, 4], [2, 3], [2, 3]]
    """
    before = np.diff(S.indptr)
    lengths = before.copy()
    for numbers, rows in parts:
        lengths[numbers] = rows.lengths
    indptr = np.zeros_like(S.indptr)
    np.cumsum(lengths, out=indptr[1:])
    data, indices = np.empty(indptr[-1], S.data.dtype), np.empty(indptr[-1], S.indices.dtype)
    # What lies between rows of another length is copied in one piece, replaced rows included; those are then written.
    moved = np.flatnonzero(lengths != before)
    starts, stops = np.append(0, S.indptr[moved + 1]).tolist(), np.append(S.indptr[moved], S.nnz).tolist()
    for start, stop, to in zip(starts, stops, np.append(0, indptr[moved + 1]).tolist()):
        data[to : to + stop - start] = S.data[start:stop]
        indices[to : to + stop - start] = S.indices[start:stop]
    for numbers, rows in parts:
        places = np.arange(len(rows.data)) + np.repeat(indptr[numbers] - rows.indptr[:-1], rows.lengths)
        data[places], indices[places] = rows.data, rows.indices
    return canonical(data, indices, indptr, S.shape)


def canonical(data: NDArray[Any], indices: NDArray[Any], indptr: NDArray[Any], shape: tuple[int, int]) -> sp.csr_matrix:
    """CSR of rows whose indices ascend."""
    S = sp.csr_matrix((data, indices, indptr), shape=shape)
    S.has_sorted_indices = S.has_canonical_format = True
    return S


def with_entries(S: Rows, n: int, rows: Numbers, columns: Numbers, values: NDArray[Any]) -> Rows:
    """Rows [m, n] with entries set, given in the order of their rows and columns; those of value 0 are taken out.

    >>> S = Rows.of(sp.csr_matrix([[1, 0], [2, 3]]), np.array([0, 1]))
    >>> after = with_entries(S, 2, np.array([0, 1, 1]), np.array([1, 0, 1]), np.array([4, 0, 5]))
    >>> after.data.tolist(), after.indices.tolist(), after.indptr.tolist()
    ([1, 4, 5], [0, 1, 1], [0, 2, 3])
    """
    m = len(S.indptr) - 1
    present, given = S.numbers * n + S.indices, rows * n + columns
    stays = np.ones(len(present) + 1, bool)
    at = np.searchsorted(present, given)
    stays[at[np.append(present, -1)[at] == given]] = False
    present, data = present[stays[:-1]], S.data[stays[:-1]]
    given, values = given[values > 0], values[values > 0]
    places = np.searchsorted(present, given)
    keys, data = np.insert(present, places, given), np.insert(data, places, values)
    return Rows(data, (keys % n).astype(S.indices.dtype), np.searchsorted(keys, np.arange(m + 1) * n))
