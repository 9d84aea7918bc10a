"""The k nearest neighbours of every entity (item or user), exact from co-occurrence counts.

    s_ij = c_ij / (owner_j·member_i + shrink + 1e-6),   c = A·Aᵀ,   row j of W: the k largest s_ij, i ≠ j

A [n, features] holds the interactions of the entities. Everything is computed by RecBole's float32 operations in their
order, so that equal counts give equal bits. RecBole picks arbitrarily among equal similarities at the k-th place; here
the smaller id wins, which makes "equal to the retrained model" well defined.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np
import scipy.sparse as sp
from numpy.typing import NDArray

from recbole_llmd.unlearning.mapping.sparse_rows import Numbers, Rows, canonical, running, with_entries, with_parts

LAST = np.uint64(np.iinfo(np.uint64).max)
ENTRIES = 1 << 22  # entries of a table or product at a time

Keys = NDArray[np.uint64]


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
    data, indices = (np.concatenate([getattr(block, name) for block in blocks]) for name in ("data", "indices"))
    indptr = running(np.concatenate([block.lengths for block in blocks]))
    return canonical(data, indices, indptr.astype(indices.dtype), (A.shape[0],) * 2)


class Corrected(NamedTuple):
    """W after a change, its :func:`last_places`, and how many rows of other entities got news or were computed.

    >>> A, alike = sp.csr_matrix(np.float32([[1, 1], [1, 0], [1, 1]])), Similarity(*np.ones((2, 3), np.float32))
    >>> W = fit(A, A.T.tocsr(), alike, k=1)  # entities 0 and 2 share both features
    >>> after = sp.csr_matrix(np.float32([[1, 1], [1, 0], [0, 1]]))
    >>> parted = np.array([0, 1]), np.array([2, 2])
    >>> result = correct(W, last_places(W, 1), after, after.T.tocsr(), alike, 1, np.array([2]), parted)
    >>> W.indices.tolist(), result.W.indices.tolist(), result.merged, result.recomputed
    ([2, 0, 0], [1, 0, 0], 1, 1)
    """

    W: sp.csr_matrix
    last: Keys
    merged: int
    recomputed: int


def correct(
    W: sp.csr_matrix,
    last: Keys,
    A: sp.csr_matrix,
    transposed: sp.csr_matrix,
    similarity: Similarity,
    k: int,
    touched: Numbers,
    parted: tuple[Numbers, Numbers],
) -> Corrected:
    """W after a change of A: the rows of the touched entities are computed, and those of the others get what is new.

    Mostly a similarity changes and stays within its row's k: one number is written. A row in which one comes, goes or
    reaches the last place is merged anew; one that loses a member, or in which one shrank below the former last place,
    could admit an entity that it does not list: such rows are computed from A.

    Args:
        W: as :func:`fit` gave it before the change; it is not written.
        last: its :func:`last_places`.
        A, transposed: A and Aᵀ after the change.
        similarity: after the change.
        k: how many neighbours an entity has.
        touched: ids of the rows of A that changed, ascending.
        parted: pairs of another entity and a touched one [m] that have less in common than before (or as much).
    """
    counts = _counts(A, transposed, touched)
    news = _news(counts, similarity, touched, parted)
    places, rewritten = _in_place(W, last, news)
    others = _distinct(news.owners[rewritten])
    merged, complete = _merged(W, last, news, others, k)
    again = others[~complete]
    parts = [(touched, _top_k(_similar(counts, similarity, touched), k)), (others, merged)]
    if len(again):
        parts[1:] = (
            (others[complete], merged.chosen(complete)),
            (again, _neighbours(A, transposed, similarity, again, k)),
        )
    after, last = with_parts(W, parts), last.copy()
    kept = (places >= 0) & ~rewritten
    owners = news.owners[kept]
    after.data[places[kept] + (after.indptr[owners] - W.indptr[owners])] = news.values[kept]  # nobody has it yet
    for numbers, rows in parts:
        last[numbers] = last_places(rows, k)
    return Corrected(after, last, len(_distinct(news.owners)) - len(again), len(again))


def _distinct(ascending: Numbers) -> Numbers:
    first = np.ones(len(ascending), bool)
    np.not_equal(ascending[1:], ascending[:-1], out=first[1:])
    return ascending[first]


class _News(NamedTuple):
    """Similarities of other entities (``owners``) to touched ones (``members``) after a change, [m]; 0 for none.

    In the order of owners and members, each pair once.
    """

    owners: NDArray[Any]
    members: NDArray[Any]
    values: NDArray[np.float32]


def _news(counts: sp.csr_matrix, similarity: Similarity, touched: Numbers, parted: tuple[Numbers, Numbers]) -> _News:
    n = counts.shape[1]
    is_touched = np.zeros(n, bool)
    is_touched[touched] = True
    other = ~is_touched[counts.indices]
    owners, members = counts.indices[other].astype(np.int64), np.repeat(touched, np.diff(counts.indptr))[other]
    keys, values = owners * n + members, similarity.of(counts.data[other], owners, members)
    order = np.argsort(keys)
    keys, values = keys[order], values[order]
    gone = ~is_touched[parted[0]]
    if gone.any():
        apart = np.setdiff1d(parted[0][gone] * n + parted[1][gone], keys)
        places = np.searchsorted(keys, apart)
        keys, values = np.insert(keys, places, apart), np.insert(values, places, np.float32(0))
    return _News(keys // n, keys % n, values)


def _in_place(W: sp.csr_matrix, last: Keys, news: _News) -> tuple[Numbers, NDArray[np.bool_]]:
    """Where in W each of the news stands (-1 where it does not), and whether the owner's row must be rewritten."""
    owners, members, values = news
    low, high = W.indptr[owners].astype(np.int64), W.indptr[owners + 1].astype(np.int64)
    stops = high
    for _ in range(int((high - low).max(initial=0)).bit_length()):  # all rows are searched by halves at once
        middle = (low + high) // 2
        below = (low < high) & (W.indices[np.minimum(middle, W.nnz - 1)] < members)
        low, high = np.where(below, middle + 1, low), np.where(below, high, middle)
    inside = np.minimum(low, max(W.nnz - 1, 0))
    listed = (low < stops) & (W.indices[inside] == members) if W.nnz else np.zeros(len(owners), bool)
    new = np.where(values > 0, _keys(values, members), LAST)
    old = np.where(listed, _keys(W.data[inside] if W.nnz else values, members), LAST)
    full = last[owners] != LAST
    stays = np.where(
        listed, (values > 0) & (~full | ((old < last[owners]) & (new < last[owners]))), new >= last[owners]
    )
    changed_owners = owners[~stays]
    rewritten = np.zeros(len(last), bool)
    rewritten[changed_owners] = True
    return np.where(listed, low, -1), rewritten[owners]


def _counts(A: sp.csr_matrix, transposed: sp.csr_matrix, numbers: Numbers) -> sp.csr_matrix:
    """Rows ``numbers`` of c with sorted indices."""
    counts = (A[numbers] @ transposed).tocsr()
    counts.sort_indices()
    return counts


def _similar(counts: sp.csr_matrix, similarity: Similarity, numbers: Numbers) -> Rows:
    """The similarities of the entities ``numbers`` to all others, of their counts [len(numbers), n]."""
    owners = np.repeat(numbers, np.diff(counts.indptr))
    rows = Rows(similarity.of(counts.data, owners, counts.indices), counts.indices, counts.indptr)
    return rows.kept(counts.indices != owners)


def _neighbours(A: sp.csr_matrix, transposed: sp.csr_matrix, similarity: Similarity, numbers: Numbers, k: int) -> Rows:
    """Rows ``numbers`` of W."""
    return _top_k(_similar(_counts(A, transposed, numbers), similarity, numbers), k)


def _keys(values: NDArray[np.float32], members: NDArray[Any]) -> Keys:
    """One number per entry, ascending from the largest similarity, and from the smallest id among equal ones.

    The bits of positive float32 numbers are ordered as the numbers are.
    """
    keys: Keys = (~values.view(np.uint32)).astype(np.uint64) << np.uint64(32)
    keys |= members.astype(np.uint64)
    return keys


def last_places(S: sp.csr_matrix | Rows, k: int, keys: Keys | None = None) -> Keys:
    """Key of the k-th entry of every row of S; the largest number where a row has fewer."""
    lengths = np.diff(S.indptr)
    last = np.full(len(lengths), LAST)
    remaining = np.flatnonzero(lengths >= k)
    if len(remaining) and keys is None:
        keys = _keys(S.data, S.indices)
    remaining = remaining[np.argsort(lengths[remaining])]
    while len(remaining):  # rows of similar length share a padded table
        assert keys is not None
        size = max(1, min(len(remaining), ENTRIES // lengths[remaining[-1]]))
        batch, remaining = remaining[-size:], remaining[:-size]
        place = np.arange(lengths[batch[-1]])
        table = keys[np.minimum(S.indptr[batch][:, None] + place, len(keys) - 1)]
        table[place >= lengths[batch][:, None]] = LAST
        last[batch] = table.max(axis=1) if len(place) == k else np.partition(table, k - 1, axis=1)[:, k - 1]
    return last


def _top_k(rows: Rows, k: int) -> Rows:
    """The k first entries of every row by :func:`_keys`."""
    if rows.lengths.max(initial=0) <= k:
        return rows
    keys = _keys(rows.data, rows.indices)
    return rows.kept(keys <= np.repeat(last_places(rows, k, keys), rows.lengths))


def _merged(W: sp.csr_matrix, last: Keys, news: _News, others: Numbers, k: int) -> tuple[Rows, NDArray[np.bool_]]:
    """The rows ``others`` of W with the news entered.

    Returns:
        Their content, and in which of them it is complete: no entity outside both lists can
        belong to the first k, since what a full row does not list comes after its last place.
    """
    place = np.full(W.shape[0], -1)
    place[others] = np.arange(len(others))
    rows = place[news.owners]
    entered = rows >= 0
    old = Rows.of(W, others)
    union = with_entries(old, W.shape[1], rows[entered], news.members[entered], news.values[entered])
    return _top_k(union, k), last_places(union, k) <= last[others]
