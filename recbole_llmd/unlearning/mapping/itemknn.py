"""ItemKNN as RecBole fits it: the k largest cosine similarities of every item, exact from co-occurrence counts.

    s_ij = c_ij / (|x_i|·|x_j| + shrink + 1e-6),   c = XᵀX,   column j of w: the k largest s_ij, i ≠ j

Everything is computed by RecBole's float32 operations in their order, so that equal counts give equal bits. RecBole
picks arbitrarily among equal similarities at the k-th place; here the smaller item id wins, which makes "equal to the
retrained model" well defined.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from typing import Any

import numpy as np
import scipy.sparse as sp

from recbole_llmd.errors import MappingMismatch
from recbole_llmd.unlearning.mapping.correction import Correction

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
    """

    def __init__(self, X, w):
        self._X, self._columns, self._user, self._row = X, w, None, None
        self.shape, self.dtype = X.shape, np.dtype(np.float32)

    @functools.cached_property
    def _w(self):
        return self._columns.tocsr()

    def __getitem__(self, index):
        user, item = index
        if isinstance(item, slice):
            return (self._X[user] @ self._w)[:, item]
        if user != self._user:  # RecBole's predict asks pair by pair, a user's pairs one after the other
            self._user, self._row = user, (self._X[[user]] @ self._w).toarray()[0]
        return self._row[item]

    def tocsr(self):
        return (self._X @ self._w).tocsr()

    def __reduce__(self):
        matrix = self.tocsr()
        return sp.csr_matrix, ((matrix.data, matrix.indices, matrix.indptr), matrix.shape)


def fit(X, params, dtype=np.float32):
    """w (CSC [n_items, n_items] float32; ``dtype`` must be that, since it decides what a tie is)."""
    X = X.astype(np.float32)
    transposed, norms = X.T.tocsr(), _norms(X)
    work = transposed.dot(np.diff(X.indptr).astype(np.float64))  # operations per item of the product
    cuts = np.flatnonzero(np.diff(np.cumsum(work) // ENTRIES, prepend=-1))
    edges = np.append(np.unique(np.append(0, cuts)), X.shape[1])
    blocks = [
        _top_k(_similarities(transposed, X, norms, np.arange(low, high), params), params["k"])
        for low, high in zip(edges[:-1], edges[1:])
    ]
    return sp.vstack(blocks, format="csr").T


def correct(fitted, change, tolerance):
    """w after the change: the similarities of the touched items recomputed and merged into the other columns.

    A column that loses a member, or in which one shrank below the former k-th place, could admit an item that
    it does not list: such columns are recomputed.

    Raises:
        MappingMismatch: if w is not that of X but for ties (checked at the first correction of a model).
    """
    w, notes = fitted.B, ()
    if not fitted.cache.get("own"):
        w, notes = _own(fitted)
    X, touched, k = change.X.astype(np.float32), change.items, fitted.params["k"]
    n = X.shape[1]
    transposed, norms = X.T.tocsr(), _norms(X)
    rows = _similarities(transposed, X, norms, touched, fitted.params)
    columns, merged, complete = _merge(w.T.tocsr(), rows, touched, k)
    again = columns[~complete]
    replaced = sp.vstack(
        [_top_k(rows, k), merged[complete], _top_k(_similarities(transposed, X, norms, again, fitted.params), k)],
        format="csr",
    )
    which = np.concatenate([touched, columns[complete], again])
    method = (
        f"merge: {len(touched)} items, {complete.sum()} columns merged, {len(again)} columns recomputed, "
        f"{n - len(which)} untouched"
    )
    return Correction(_replace_rows(w.T.tocsr(), which, replaced).T, method, cache={"own": X.shape}, notes=notes)


def trained_on(stored: Mapping[str, Any], X: sp.csr_matrix) -> bool:
    """Whether RecBole's stored scores are X·w, by a product with random weights of the items."""
    w, scores = sp.csr_matrix(stored["w"]), sp.csr_matrix(stored["pred_mat"])
    if scores.shape != X.shape or w.shape != (X.shape[1],) * 2:
        return False
    weights = np.random.default_rng(0).uniform(0.5, 1.5, X.shape[1])  # positive: nothing cancels out
    return np.allclose(scores @ weights, X @ (w @ weights), rtol=1e-4, atol=1e-6)


def derived(X, B):
    """The scores that RecBole's ItemKNN keeps."""
    return {"pred_mat": Scores(X, B)}


def _norms(X):
    return np.sqrt(np.asarray(X.power(2).sum(axis=0)).ravel())


def _similarities(transposed, X, norms, items, params):
    """Rows ``items`` of s, CSR [len(items), n_items] with sorted indices and no diagonal."""
    S = (transposed[items] @ X).tocsr()
    S.sort_indices()
    row = np.repeat(np.arange(len(items)), np.diff(S.indptr))
    S.data *= 1 / (norms[items][row] * norms[S.indices] + (params["shrink"] or 0.0) + 1e-6)
    return _keep(S, S.indices != items[row])


def _keep(S, mask):
    """The entries of CSR S where ``mask`` is true."""
    indptr = np.append(0, np.cumsum(mask))[S.indptr]
    return sp.csr_matrix((S.data[mask], S.indices[mask], indptr), shape=S.shape)


def _keys(S):
    """One number per entry, ascending from the largest similarity, and from the smallest id among equal ones.

    The bits of positive float32 numbers are ordered as the numbers are.
    """
    return (~S.data.view(np.uint32)).astype(np.uint64) << np.uint64(32) | S.indices.astype(np.uint64)


def _last_places(S, keys, k):
    """Key of the k-th entry of every row of CSR S; the largest number where a row has fewer."""
    lengths = np.diff(S.indptr)
    last = np.full(S.shape[0], LAST)
    rows = np.flatnonzero(lengths >= k)
    rows = rows[np.argsort(lengths[rows])]
    while len(rows):  # rows of similar length share a padded table
        take = max(1, min(len(rows), ENTRIES // lengths[rows[-1]]))
        some, rows = rows[-take:], rows[:-take]
        place = np.arange(lengths[some[-1]])
        table = keys[np.minimum(S.indptr[some][:, None] + place, len(keys) - 1)]
        table[place >= lengths[some][:, None]] = LAST
        last[some] = np.partition(table, k - 1, axis=1)[:, k - 1]
    return last


def _top_k(S, k):
    """The k first entries of every row of CSR S by :func:`_keys`."""
    keys = _keys(S)
    return _keep(S, keys <= np.repeat(_last_places(S, keys, k), np.diff(S.indptr)))


def _merge(columns_of_w, rows, touched, k):
    """The other columns with their entries of touched items replaced.

    Args:
        columns_of_w: wᵀ, CSR.
        rows: the new similarities of the touched items, CSR [len(touched), n_items].

    Returns:
        tuple: ids of the columns concerned, their new content (CSR [len(ids), n_items]), and in which of them it is
        complete: no item outside both lists can belong to the first k.
    """
    n = columns_of_w.shape[1]
    is_touched = np.zeros(n, bool)
    is_touched[touched] = True
    concerned = np.zeros(n, bool)
    concerned[rows.indices] = True
    listed = np.repeat(np.arange(n), np.diff(columns_of_w.indptr))
    concerned[listed[is_touched[columns_of_w.indices]]] = True
    columns = np.flatnonzero(concerned & ~is_touched)
    old = columns_of_w[columns]
    kept = _keep(old, ~is_touched[old.indices])
    arrived = rows[:, columns].T.tocsr()
    arrived.indices = touched[arrived.indices].astype(kept.indices.dtype)
    arrived = sp.csr_matrix((arrived.data, arrived.indices, arrived.indptr), shape=kept.shape)
    union = (kept + arrived).tocsr()  # disjoint entries
    union.sort_indices()
    # What a full column does not list comes after its last place.
    before = _last_places(old, _keys(old), k)
    after = _last_places(union, _keys(union), k)
    return columns, _top_k(union, k), after <= before


def _replace_rows(S, which, rows):
    """CSR S with the rows ``which`` replaced by those of CSR ``rows``."""
    source = np.arange(S.shape[0])
    source[which] = S.shape[0] + np.arange(len(which))
    return sp.vstack([S, rows], format="csr")[source]


def _own(fitted):
    """Our w of X, once it is certain that the model's differs by the choice among ties alone."""
    own, theirs = fit(fitted.X, fitted.params), fitted.B.tocsc()
    lengths = np.diff(own.indptr)
    if np.array_equal(lengths, np.diff(theirs.indptr)):
        column = np.repeat(np.arange(len(lengths)), lengths)
        values = [w.data[np.lexsort((w.data, column))] for w in (own, theirs)]
        if np.allclose(*values, rtol=1e-6, atol=0):
            differ = (own != theirs).tocoo()
            ties = len(np.unique(differ.col))
            return own, ((f"{ties} columns had a tie at the k-th place, now decided by item id",) if ties else ())
    raise MappingMismatch("the similarities in w are not those of the interactions")
