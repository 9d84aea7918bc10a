"""The k nearest neighbours of every entity (item or user), exact from co-occurrence counts.

    s_ij = c_ij / (owner_j·member_i + shrink + 1e-6),   c = A·Aᵀ,   row j of W: the k largest s_ij, i ≠ j

A [n, features] holds the interactions of the entities. Everything is computed by RecBole's float32 operations in their
order, so that equal counts give equal bits. RecBole picks arbitrarily among equal similarities at the k-th place; here
the smaller id wins, which makes "equal to the retrained model" well defined.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
import scipy.sparse as sp
from numpy.typing import NDArray

LAST = np.uint64(np.iinfo(np.uint64).max)
ENTRIES = 1 << 22  # entries of a table or product at a time

Numbers = NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class Similarity:
    """What counts are divided by: owner_j·member_i + shrink + 1e-6, in float32.

    Attributes:
        owner, member: [n] float32.
        shrink: of RecBole's ItemKNN.

    >>> cosine = Similarity(*[np.sqrt(np.float32([4, 9]))] * 2)
    >>> cosine.of(np.float32([3]), np.array([0]), np.array([1])).round(4).tolist()
    [0.5]
    """

    owner: NDArray[np.float32]
    member: NDArray[np.float32]
    shrink: float = 0.0

    def of(self, counts: NDArray[np.float32], owners: NDArray[Any], members: NDArray[Any]) -> NDArray[np.float32]:
        """The similarities of entities ``owners`` [m] to ``members`` [m] with these counts [m]."""
        similar: NDArray[np.float32] = counts * (1 / (self.owner[owners] * self.member[members] + self.shrink + 1e-6))
        return similar


def fit(A: sp.csr_matrix, transposed: sp.csr_matrix, similarity: Similarity, k: int) -> sp.csr_matrix:
    """W (CSR [n, n] float32) of the entities A [n, features], given Aᵀ too."""
    work = A @ np.diff(transposed.indptr).astype(np.float64)  # operations per row of the product
    cuts = np.flatnonzero(np.diff(np.cumsum(work) // ENTRIES, prepend=-1))
    edges = np.append(np.unique(np.append(0, cuts)), A.shape[0])
    blocks = [_neighbours(A, transposed, similarity, np.arange(low, high), k) for low, high in pairwise(edges)]
    return sp.vstack(blocks, format="csr")


def correct(
    W: sp.csr_matrix,
    A: sp.csr_matrix,
    transposed: sp.csr_matrix,
    similarity: Similarity,
    k: int,
    touched: Numbers,
    were_near: NDArray[Any],
) -> tuple[sp.csr_matrix, int, int]:
    """W after a change of A: the rows of the touched entities are computed, and merged into those of the others.

    A row that loses a member, or in which one shrank below the former k-th place, could admit an entity that it does
    not list: such rows are computed anew.

    Args:
        W: as :func:`fit` gave it before the change; it is not written.
        A, transposed: A and Aᵀ after the change.
        similarity: after the change.
        k: how many neighbours an entity has.
        touched: ids of the rows of A that changed, ascending.
        were_near: ids of all entities that shared a feature with a touched one and no longer do (and any others).

    Returns:
        W, and how many rows of other entities were merged and how many computed anew.
    """
    counts = _counts(A, transposed, touched)
    others, merged, complete = _merged(W, counts, similarity, k, touched, were_near)
    again = others[~complete]
    parts = [(touched, _top_k(_similar(counts, similarity, touched), k)), (others, merged)]
    if len(again):  # these rows are written twice
        parts = [
            parts[0],
            (others[complete], merged[complete]),
            (again, _neighbours(A, transposed, similarity, again, k)),
        ]
    return with_parts(W, parts), len(others) - len(again), len(again)


def with_parts(S: sp.csr_matrix, parts: Sequence[tuple[Numbers, sp.csr_matrix]]) -> sp.csr_matrix:
    """A copy of CSR S with rows replaced: for each of ``parts`` the rows numbered so by those of its matrix.

    >>> S = sp.csr_matrix([[1, 0], [2, 3], [0, 4]])
    >>> with_parts(S, [(np.array([2, 0]), sp.csr_matrix([[5, 6], [0, 7]]))]).toarray().tolist()
    [[0, 7], [2, 3], [5, 6]]
    """
    before = np.diff(S.indptr)
    lengths = before.copy()
    for numbers, rows in parts:
        lengths[numbers] = np.diff(rows.indptr)
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
        places = np.arange(rows.nnz) + np.repeat(indptr[numbers] - rows.indptr[:-1], np.diff(rows.indptr))
        data[places], indices[places] = rows.data, rows.indices
    return _canonical(data, indices, indptr, S.shape)


def _canonical(
    data: NDArray[Any], indices: NDArray[Any], indptr: NDArray[Any], shape: tuple[int, int]
) -> sp.csr_matrix:
    """CSR of rows whose indices ascend."""
    S = sp.csr_matrix((data, indices, indptr), shape=shape)
    S.has_sorted_indices = S.has_canonical_format = True
    return S


def _counts(A: sp.csr_matrix, transposed: sp.csr_matrix, numbers: Numbers) -> sp.csr_matrix:
    """Rows ``numbers`` of c with sorted indices."""
    counts = (A[numbers] @ transposed).tocsr()
    counts.sort_indices()
    return counts


def _similar(counts: sp.csr_matrix, similarity: Similarity, numbers: Numbers) -> sp.csr_matrix:
    """The similarities of the entities ``numbers`` to all others, of their counts [len(numbers), n]."""
    owners = np.repeat(numbers, np.diff(counts.indptr))
    data = similarity.of(counts.data, owners, counts.indices)
    return _keep(_canonical(data, counts.indices, counts.indptr, counts.shape), counts.indices != owners)


def _neighbours(
    A: sp.csr_matrix, transposed: sp.csr_matrix, similarity: Similarity, numbers: Numbers, k: int
) -> sp.csr_matrix:
    """Rows ``numbers`` of W."""
    return _top_k(_similar(_counts(A, transposed, numbers), similarity, numbers), k)


def _keep(S: sp.csr_matrix, mask: NDArray[np.bool_]) -> sp.csr_matrix:
    """The entries of CSR S where ``mask`` is true."""
    indptr = np.append(0, np.cumsum(mask, dtype=S.indptr.dtype))[S.indptr]
    return _canonical(S.data[mask], S.indices[mask], indptr, S.shape)


def _keys(S: sp.csr_matrix) -> NDArray[np.uint64]:
    """One number per entry, ascending from the largest similarity, and from the smallest id among equal ones.

    The bits of positive float32 numbers are ordered as the numbers are.
    """
    keys: NDArray[np.uint64] = (~S.data.view(np.uint32)).astype(np.uint64) << np.uint64(32)
    keys |= S.indices.astype(np.uint64)
    return keys


def _last_places(S: sp.csr_matrix, keys: NDArray[np.uint64], k: int) -> NDArray[np.uint64]:
    """Key of the k-th entry of every row of CSR S; the largest number where a row has fewer."""
    lengths = np.diff(S.indptr)
    last = np.full(S.shape[0], LAST)
    remaining = np.flatnonzero(lengths >= k)
    remaining = remaining[np.argsort(lengths[remaining])]
    while len(remaining):  # rows of similar length share a padded table
        size = max(1, min(len(remaining), ENTRIES // lengths[remaining[-1]]))
        batch, remaining = remaining[-size:], remaining[:-size]
        place = np.arange(lengths[batch[-1]])
        table = keys[np.minimum(S.indptr[batch][:, None] + place, len(keys) - 1)]
        table[place >= lengths[batch][:, None]] = LAST
        last[batch] = table.max(axis=1) if len(place) == k else np.partition(table, k - 1, axis=1)[:, k - 1]
    return last


def _top_k(S: sp.csr_matrix, k: int) -> sp.csr_matrix:
    """The k first entries of every row of CSR S by :func:`_keys`."""
    if np.diff(S.indptr).max(initial=0) <= k:
        return S
    keys = _keys(S)
    return _keep(S, keys <= np.repeat(_last_places(S, keys, k), np.diff(S.indptr)))


def _merged(
    W: sp.csr_matrix,
    counts: sp.csr_matrix,
    similarity: Similarity,
    k: int,
    touched: Numbers,
    were_near: NDArray[Any],
) -> tuple[Numbers, sp.csr_matrix, NDArray[np.bool_]]:
    """The rows of other entities with their touched members replaced.

    Returns:
        Ids of the rows concerned, their new content (CSR [len(ids), n]), and in which of them it is complete: no entity
        outside both lists can belong to the first k.
    """
    n = W.shape[0]
    is_touched, near, place = np.zeros(n, bool), np.zeros(n, bool), np.zeros(n, np.int64)
    is_touched[touched] = near[counts.indices] = near[were_near] = True
    others = np.flatnonzero(near & ~is_touched)
    place[others] = np.arange(len(others))
    old = W[others]
    member, arriving = np.repeat(touched, np.diff(counts.indptr)), ~is_touched[counts.indices]
    member, owner = member[arriving], counts.indices[arriving]
    order = np.argsort(place[owner], kind="stable")  # the members of each ascend already
    member, owner = member[order], owner[order]
    union = _with_entries(
        _keep(old, ~is_touched[old.indices]),
        place[owner],
        member,
        similarity.of(counts.data[arriving][order], owner, member),
    )
    complete = np.ones(len(others), bool)
    if k <= max(np.diff(S.indptr).max(initial=0) for S in (old, union)):
        full = np.flatnonzero((np.diff(old.indptr) >= k) | (np.diff(union.indptr) > k))
        # What a full row does not list comes after its last place.
        before, after = (_last_places(S, _keys(S), k) for S in (old[full], union[full]))
        complete[full] = after <= before
    return others, _top_k(union, k), complete


def _with_entries(S: sp.csr_matrix, rows: Numbers, columns: Numbers, values: NDArray[np.float32]) -> sp.csr_matrix:
    """CSR S with further entries, given in the order of their rows and columns; S has none of them."""
    n = S.shape[1]
    lengths = np.diff(S.indptr)
    present = np.repeat(np.arange(S.shape[0]) * n, lengths) + S.indices
    places = np.searchsorted(present, rows * n + columns) + np.arange(len(rows))
    stays = np.ones(S.nnz + len(rows), bool)
    stays[places] = False
    data, indices = np.empty(len(stays), S.data.dtype), np.empty(len(stays), S.indices.dtype)
    data[stays], data[places], indices[stays], indices[places] = S.data, values, S.indices, columns
    indptr = np.append(0, np.cumsum(lengths + np.bincount(rows, minlength=S.shape[0])))
    return _canonical(data, indices, indptr.astype(S.indptr.dtype), S.shape)
