"""ItemKNN as RecBole fits it: the k largest cosine similarities of every item, exact from co-occurrence counts.

    s_ij = c_ij / (|x_i|·|x_j| + shrink + 1e-6),   c = XᵀX,   column j of w: the k largest s_ij, i ≠ j

Everything is computed by RecBole's float32 operations in their order, so that equal counts give equal bits. RecBole
picks arbitrarily among equal similarities at the k-th place; here the smaller item id wins, which makes "equal to the
retrained model" well defined.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from itertools import pairwise
from typing import Any

import numpy as np
import scipy.sparse as sp
from numpy.typing import DTypeLike, NDArray

from recbole_llmd.errors import MappingMismatch
from recbole_llmd.unlearning.mapping.correction import Change, Correction, FittedMapping, MappingMatrix

PARAMETERS: tuple[str, ...] = ("k", "shrink", "knn_method")
MATRIX = "w"
TOLERANCE = {"float32": 0.0}
REQUIRED: dict[str, Any] = {"knn_method": "item"}  # by users it is no item-item mapping

LAST = np.uint64(np.iinfo(np.uint64).max)
ENTRIES = 1 << 22  # entries of a table or product at a time


class Scores:
    """X·w where it is asked for: what RecBole's ItemKNN reads of its ``pred_mat``, without keeping that matrix.

    RecBole's users × items matrix holds a hundred times the entries of X. Pickled (a checkpoint), it is
    written as the SciPy matrix that it stands for, so that plain RecBole reads it.

    >>> X = sp.csr_matrix([[0, 0], [0, 2]], dtype=np.float32)
    >>> w = sp.csc_matrix([[0, 0], [3, 0]], dtype=np.float32)
    >>> float(Scores(X, w)[1, 0])
    6.0
    """

    def __init__(self, X: sp.csr_matrix, w: sp.csc_matrix) -> None:
        self._X, self._columns = X, w
        self._user: int | None = None
        self._row: NDArray[np.float32] | None = None
        self.shape, self.dtype = X.shape, np.dtype(np.float32)

    @functools.cached_property
    def _w(self) -> sp.csr_matrix:
        return self._columns.tocsr()

    def __getitem__(self, index: tuple[Any, Any]) -> Any:
        user, item = index
        if isinstance(item, slice):
            return (self._X[user] @ self._w)[:, item]
        if (
            self._row is None or user != self._user
        ):  # RecBole's predict asks pair by pair, a user's pairs one after the other
            self._user, self._row = user, (self._X[[user]] @ self._w).toarray()[0]
        return self._row[item]

    def tocsr(self) -> sp.csr_matrix:
        """X·w [n_users, n_items]."""
        return (self._X @ self._w).tocsr()

    def __reduce__(self) -> tuple[Any, ...]:
        matrix = self.tocsr()
        return sp.csr_matrix, ((matrix.data, matrix.indices, matrix.indptr), matrix.shape)


def fit(X: sp.csr_matrix, params: Mapping[str, Any], dtype: DTypeLike = np.float32) -> sp.csc_matrix:
    """The similarities w (CSC [n_items, n_items] float32; ``dtype`` must be that, since it decides what a tie is)."""
    X = X.astype(np.float32)
    transposed, norms = X.T.tocsr(), _norms(X)
    work = transposed.dot(np.diff(X.indptr).astype(np.float64))  # operations per item of the product
    cuts = np.flatnonzero(np.diff(np.cumsum(work) // ENTRIES, prepend=-1))
    edges = np.append(np.unique(np.append(0, cuts)), X.shape[1])
    blocks = [
        _top_k(_similarities(transposed, X, norms, np.arange(low, high), params), params["k"])
        for low, high in pairwise(edges)
    ]
    return sp.vstack(blocks, format="csr").T


def correct(fitted: FittedMapping, change: Change, tolerance: float) -> Correction:
    """The similarities w after the change: those of the touched items recomputed and merged into the other columns.

    A column that loses a member, or in which one shrank below the former k-th place, could admit an item that
    it does not list: such columns are recomputed.

    Raises:
        MappingMismatch: if w is not that of X but for ties (checked at the first correction of a model).
    """
    w, notes = (fitted.B, ()) if "exact_for" in fitted.cache else _without_ties(fitted)
    X, touched, k = change.X.astype(np.float32), change.items, fitted.params["k"]
    n = X.shape[1]
    transposed, norms = X.T.tocsr(), _norms(X)
    similarities = _similarities(transposed, X, norms, touched, fitted.params)
    columns, merged, complete = _merge(w.T.tocsr(), similarities, touched, k)
    again = columns[~complete]
    recomputed = _similarities(transposed, X, norms, again, fitted.params)
    replacement = sp.vstack([_top_k(similarities, k), merged[complete], _top_k(recomputed, k)], format="csr")
    replaced = np.concatenate([touched, columns[complete], again])
    method = (
        f"merge: {len(touched)} items, {complete.sum()} columns merged, {len(again)} columns recomputed, "
        f"{n - len(replaced)} untouched"
    )
    w = replace_rows(w.T.tocsr(), replaced, replacement).T
    return Correction(w, method, cache={"exact_for": X.shape}, notes=notes)


def trained_on(stored: Mapping[str, Any], X: sp.csr_matrix) -> bool:
    """Whether RecBole's stored scores are X·w, by a product with random weights of the items."""
    w, scores = sp.csr_matrix(stored["w"]), sp.csr_matrix(stored["pred_mat"])
    if scores.shape != X.shape or w.shape != (X.shape[1],) * 2:
        return False
    weights = np.random.default_rng(0).uniform(0.5, 1.5, X.shape[1])  # positive: nothing cancels out
    return bool(np.allclose(scores @ weights, X @ (w @ weights), rtol=1e-4, atol=1e-6))


def derived(X: sp.csr_matrix, B: MappingMatrix) -> dict[str, Any]:
    """The scores that RecBole's ItemKNN keeps."""
    return {"pred_mat": Scores(X, B)}


def _norms(X: sp.csr_matrix) -> NDArray[np.float32]:
    norms: NDArray[np.float32] = np.sqrt(np.asarray(X.power(2).sum(axis=0)).ravel())
    return norms


def _similarities(
    transposed: sp.csr_matrix,
    X: sp.csr_matrix,
    norms: NDArray[np.float32],
    items: NDArray[np.int64],
    params: Mapping[str, Any],
) -> sp.csr_matrix:
    """Rows ``items`` of s, CSR [len(items), n_items] with sorted indices and no diagonal."""
    S = (transposed[items] @ X).tocsr()
    S.sort_indices()
    row = np.repeat(np.arange(len(items)), np.diff(S.indptr))
    S.data *= 1 / (norms[items][row] * norms[S.indices] + (params["shrink"] or 0.0) + 1e-6)
    return _keep(S, S.indices != items[row])


def _keep(S: sp.csr_matrix, mask: NDArray[np.bool_]) -> sp.csr_matrix:
    """The entries of CSR S where ``mask`` is true."""
    indptr = np.append(0, np.cumsum(mask))[S.indptr]
    return sp.csr_matrix((S.data[mask], S.indices[mask], indptr), shape=S.shape)


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
        last[batch] = np.partition(table, k - 1, axis=1)[:, k - 1]
    return last


def _top_k(S: sp.csr_matrix, k: int) -> sp.csr_matrix:
    """The k first entries of every row of CSR S by :func:`_keys`."""
    keys = _keys(S)
    return _keep(S, keys <= np.repeat(_last_places(S, keys, k), np.diff(S.indptr)))


def _merge(
    columns_of_w: sp.csr_matrix, similarities: sp.csr_matrix, touched: NDArray[np.int64], k: int
) -> tuple[NDArray[np.int64], sp.csr_matrix, NDArray[np.bool_]]:
    """The other columns with their entries of touched items replaced.

    Args:
        columns_of_w: wᵀ, CSR.
        similarities: the new ones of the touched items, CSR [len(touched), n_items].
        touched: ids of these items.
        k: how many entries a column has.

    Returns:
        Ids of the columns concerned, their new content (CSR [len(ids), n_items]), and in which of them it is
        complete: no item outside both lists can belong to the first k.
    """
    n = columns_of_w.shape[1]
    is_touched = np.zeros(n, bool)
    is_touched[touched] = True
    concerned = np.zeros(n, bool)
    concerned[similarities.indices] = True
    listed = np.repeat(np.arange(n), np.diff(columns_of_w.indptr))
    concerned[listed[is_touched[columns_of_w.indices]]] = True
    columns = np.flatnonzero(concerned & ~is_touched)
    old = columns_of_w[columns]
    kept = _keep(old, ~is_touched[old.indices])
    arrived = similarities[:, columns].T.tocsr()
    arrived.indices = touched[arrived.indices].astype(kept.indices.dtype)
    arrived = sp.csr_matrix((arrived.data, arrived.indices, arrived.indptr), shape=kept.shape)
    union = (kept + arrived).tocsr()  # disjoint entries
    union.sort_indices()
    # What a full column does not list comes after its last place.
    before = _last_places(old, _keys(old), k)
    after = _last_places(union, _keys(union), k)
    return columns, _top_k(union, k), after <= before


def replace_rows(S: sp.csr_matrix, numbers: NDArray[np.int64], replacement: sp.csr_matrix) -> sp.csr_matrix:
    """CSR S with the rows ``numbers`` replaced by those of CSR ``replacement``."""
    source = np.arange(S.shape[0])
    source[numbers] = S.shape[0] + np.arange(len(numbers))
    return sp.vstack([S, replacement], format="csr")[source]


def _without_ties(fitted: FittedMapping) -> tuple[sp.csc_matrix, tuple[str, ...]]:
    """The w that :func:`fit` gives for X, and a note; the model's must differ by its choice among ties alone."""
    refitted, theirs = fit(fitted.X, fitted.params), fitted.B.tocsc()
    lengths = np.diff(refitted.indptr)
    if np.array_equal(lengths, np.diff(theirs.indptr)):
        column = np.repeat(np.arange(len(lengths)), lengths)
        sorted_values = [w.data[np.lexsort((w.data, column))] for w in (refitted, theirs)]
        if np.allclose(sorted_values[0], sorted_values[1], rtol=1e-6, atol=0):
            ties = len(np.unique((refitted != theirs).tocoo().col))
            note = f"{ties} columns had a tie at the k-th place, now decided by item id"
            return refitted, (note,) if ties else ()
    raise MappingMismatch("the similarities in w are not those of the interactions")
