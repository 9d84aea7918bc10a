"""What RecBole's neighbourhood models share: neighbours of items (scores X·w) or users (w·X), corrected exactly.

The neighbours themselves are those of :mod:`~recbole_llmd.unlearning.mapping.neighbours`. Of the interactions X, the
entities compared are the columns (``knn_method: item``) or the rows (``user``). Between the requests on a model, X by
columns and the entities' totals are remembered and corrected too, so that a request reads what it concerns.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np
import scipy.sparse as sp
from numpy.typing import NDArray

from recbole_llmd.errors import MappingMismatch
from recbole_llmd.unlearning.mapping import neighbours
from recbole_llmd.unlearning.mapping.correction import Change, Correction, FittedMapping, MappingMatrix, axis
from recbole_llmd.unlearning.mapping.neighbours import Similarity
from recbole_llmd.unlearning.mapping.sparse_rows import Rows, with_entries, with_parts

Totals = NDArray[np.float64]


class Kind(NamedTuple):
    """A similarity: how it follows from the totals of the entities, [n] sums of their entries to a ``power``.

    >>> cosine = Kind(2, lambda totals, params: Similarity(np.sqrt(totals), np.sqrt(totals)))
    >>> w = fit(sp.csr_matrix([[1, 1, 0], [1, 0, 1]]), {"k": 1}, cosine)
    >>> w.indices.tolist(), [round(value, 4) for value in w.data.tolist()]  # the nearest of items 0, 1 and 2
    ([1, 0, 0], [0.7071, 0.7071, 0.7071])
    """

    power: int
    similarity: Callable[[NDArray[np.float32], Mapping[str, Any]], Similarity]


class Scores:
    """left·right where it is asked for: what RecBole reads of its ``pred_mat``, without keeping that matrix.

    RecBole's users × items matrix holds a hundred times the entries of X. Pickled (a checkpoint), it is
    written as the SciPy matrix that it stands for, so that plain RecBole reads it.

    >>> X = sp.csr_matrix([[0, 0], [0, 2]], dtype=np.float32)
    >>> w = sp.csc_matrix([[0, 0], [3, 0]], dtype=np.float32)
    >>> float(Scores(X, w)[1, 0])
    6.0
    """

    def __init__(self, left: sp.spmatrix, right: sp.spmatrix) -> None:
        self._left, self._right = left, right
        self._last: tuple[Any, NDArray[np.float32] | None] = (None, None)
        self.shape, self.dtype = (left.shape[0], right.shape[1]), np.dtype(np.float32)

    def rows(self, users: Any) -> sp.csr_matrix:
        """The scores of ``users`` [m], CSR [m, n_items]."""
        self._left, self._right = self._left.tocsr(), self._right.tocsr()  # once
        return self._left[users] @ self._right

    def __getitem__(self, index: tuple[Any, Any]) -> Any:
        user, item = index
        if isinstance(item, slice):
            return self.rows(user)[:, item]
        last, row = self._last
        if row is None or user != last:  # RecBole's predict asks pair by pair, a user's pairs one after the other
            row = self.rows([user]).toarray()[0]
            self._last = user, row
        return row[item]

    def tocsr(self) -> sp.csr_matrix:
        """All of them [n_users, n_items]."""
        return self.rows(slice(None))

    def __reduce__(self) -> tuple[Any, ...]:
        matrix = self.tocsr()
        return sp.csr_matrix, ((matrix.data, matrix.indices, matrix.indptr), matrix.shape)


def factors(X: sp.csr_matrix, w: MappingMatrix, params: Mapping[str, Any]) -> tuple[Any, Any]:
    """What is multiplied for the scores: X and w, or w and X."""
    return (X, w) if axis(params) else (w, X)


def fit(X: sp.csr_matrix, params: Mapping[str, Any], kind: Kind) -> MappingMatrix:
    """w: CSC [n_items, n_items] of columns of neighbours, or CSR [n_users, n_users] of rows; float32."""
    X = X.astype(np.float32, copy=False)
    A, transposed = _oriented(X, X.T.tocsr(), params)
    similarity = kind.similarity(_totals(A, kind.power).astype(np.float32), params)
    return _stored(neighbours.fit(A, transposed, similarity, params["k"]), params)


def correct(fitted: FittedMapping, change: Change, kind: Kind) -> Correction:
    """w after the change.

    Raises:
        MappingMismatch: if w is not that of X but for ties (checked at the first correction of a model).
    """
    params = fitted.params
    before, X = (matrix.astype(np.float32, copy=False) for matrix in (fitted.X, change.X))
    w, notes = (fitted.B, ()) if "exact_for" in fitted.cache else _without_ties(fitted, kind)
    known = fitted.cache.get("columns")
    columns = before.T.tocsr() if known is None else _enlarged(known, (before.shape[1], before.shape[0]))
    after = _columns_after(columns, change)
    A, transposed = _oriented(X, after, params)
    user, item = change.owners, change.delta.indices.astype(np.int64)
    touched, entity, feature, had = (
        (change.items, item, user, before) if axis(params) else (change.users, user, item, columns)
    )
    with_it = Rows.of(had, feature)  # the entities that had in common what one has no longer
    parted = with_it.indices.astype(np.int64), np.repeat(entity, with_it.lengths)
    if "totals" in fitted.cache:
        totals = np.zeros(A.shape[0])
        totals[: len(fitted.cache["totals"])] = fitted.cache["totals"]
        totals[touched] = _totals(Rows.of(A, touched), kind.power)
    else:
        totals = _totals(A, kind.power)
    of_w = _by_entity(w, params)
    last = fitted.cache.get("last")
    if last is None:
        last = neighbours.last_places(of_w, params["k"])
    last = np.append(last, np.full(of_w.shape[0] - len(last), neighbours.LAST))
    similarity = kind.similarity(totals.astype(np.float32), params)
    result = neighbours.correct(of_w, last, A, transposed, similarity, params["k"], touched, parted)
    entities, lines = ("items", "columns") if axis(params) else ("users", "rows")
    method = (
        f"merge: {len(touched)} {entities}, {result.merged} {lines} merged, {result.recomputed} {lines} recomputed, "
        f"{A.shape[0] - len(touched) - result.merged - result.recomputed} untouched"
    )
    cache = {"exact_for": X.shape, "columns": after, "totals": totals, "last": result.last}
    return Correction(_stored(result.W, params), method, cache=cache, notes=notes)


def _oriented(X: sp.csr_matrix, columns: sp.csr_matrix, params: Mapping[str, Any]) -> tuple[Any, Any]:
    """The interactions by entity and by what entities have in common."""
    return (columns, X) if axis(params) else (X, columns)


def _by_entity(w: MappingMatrix, params: Mapping[str, Any]) -> sp.csr_matrix:
    """The neighbours of each entity as a row."""
    return (w.T if axis(params) else w).tocsr()


def _stored(W: sp.csr_matrix, params: Mapping[str, Any]) -> MappingMatrix:
    """The neighbours as the model holds them: those of an item are a column."""
    return W.T if axis(params) else W


def _totals(A: sp.csr_matrix | Rows, power: int) -> Totals:
    """The sums of the rows' entries to a power, [n]."""
    n = len(A.indptr) - 1
    row = np.repeat(np.arange(n), np.diff(A.indptr))
    return np.asarray(np.bincount(row, A.data.astype(np.float64) ** power, n), np.float64)


def _enlarged(S: sp.csr_matrix, shape: tuple[int, int]) -> sp.csr_matrix:
    """CSR S with empty rows and columns at the end."""
    if S.shape == shape:
        return S
    indptr = np.append(S.indptr, np.full(shape[0] - S.shape[0], S.indptr[-1], S.indptr.dtype))
    return sp.csr_matrix((S.data, S.indices, indptr), shape=shape)


def _columns_after(columns: sp.csr_matrix, change: Change) -> sp.csr_matrix:
    """X' by columns (CSR [n_items, n_users]), given X so."""
    n_users, n_items = change.X.shape
    rows, delta = Rows.of(change.X, change.users), change.delta
    row = np.repeat(np.arange(len(change.users)), np.diff(delta.indptr))
    present, changed = (
        np.repeat(np.arange(len(change.users)) * n_items, rows.lengths) + rows.indices,
        row * n_items + delta.indices,
    )
    at = np.searchsorted(present, changed)
    values = np.where(np.append(present, -1)[at] == changed, np.append(rows.data, 0)[at], 0)
    place, user = np.searchsorted(change.items, delta.indices), change.users[row]
    order = np.argsort(place * n_users + user)
    before = Rows.of(columns, change.items)
    after = with_entries(before, n_users, place[order], user[order], values[order])
    return with_parts(columns, [(change.items, after)])


def _without_ties(fitted: FittedMapping, kind: Kind) -> tuple[MappingMatrix, tuple[str, ...]]:
    """The w that :func:`fit` gives for X, and a note; the model's must differ by its choice among ties alone."""
    refitted = fit(fitted.X, fitted.params, kind)
    ours, theirs = (_by_entity(w, fitted.params) for w in (refitted, fitted.B))
    lengths = np.diff(ours.indptr)
    if np.array_equal(lengths, np.diff(theirs.indptr)):
        row = np.repeat(np.arange(len(lengths)), lengths)
        sorted_values = [W.data[np.lexsort((W.data, row))] for W in (ours, theirs)]
        if np.allclose(sorted_values[0], sorted_values[1], rtol=1e-6, atol=0):
            ties = len(np.unique((ours != theirs).tocoo().row))
            entity, lines = ("item", "columns") if axis(fitted.params) else ("user", "rows")
            note = f"{ties} {lines} had a tie at the k-th place, now decided by {entity} id"
            return refitted, (note,) if ties else ()
    raise MappingMismatch("the similarities in w are not those of the interactions")
