"""Ridge regressions of items on few others each, solved together from the sparse interactions X.

    b_j = (G[S, S] + λI)⁻¹·G[S, j],   G = XᵀX,   S: the items on which j is regressed

The triangular factor of G + λI over S and then j, L·Lᵀ, has (L_S⁻¹·G[S, j])ᵀ in its last row, before the diagonal: one
factorisation gives what is left to solve, L_Sᵀ·b = L_S⁻¹·G[S, j]. An entry of G is summed over the users in the order
of their ids, a system has S in the order of ids and a size that follows from that of S alone, and what is done to many
systems at once is done entry by entry: b_j has the same bits whichever columns it is solved with.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise

import numpy as np
import scipy.sparse as sp
from numpy.typing import NDArray

from recbole_llmd.unlearning.mapping.sparse_rows import Numbers, Rows
from recbole_llmd.unlearning.mapping.threads import in_parallel

ENTRIES = 1 << 27  # of the systems that are held at a time: 1 GiB; each time, rows of G are computed anew
OPERATIONS = 1 << 22  # of the rows of G that are held at a time
TOGETHER = 1 << 19  # entries of the systems that a thread factorises at a time
STEP = 10  # sizes of systems are multiples of it, so that there are few

Floats = NDArray[np.float64]


def regress(X: sp.csr_matrix, transposed: sp.csr_matrix, items: Numbers, on: Rows, weight: float) -> Floats:
    """The coefficients of each of ``items`` on the items that its row of ``on`` lists, in the places of ``on.indices``.

    Memory: ``ENTRIES``, or one system where that is larger, and the few rows of G that are at work.

    >>> X = sp.csr_matrix([[1.0, 1.0], [1.0, 1.0], [1.0, 0.0]])  # G = [[3, 2], [2, 2]]
    >>> on = Rows(np.ones(1), np.array([0]), np.array([0, 1]))
    >>> round(float(regress(X, X.T.tocsr(), np.array([1]), on, weight=1.0)[0]), 12)  # 2 / (3 + 1)
    0.5

    Args:
        X, transposed: CSR [n_users, n_items] and its transpose, with sorted indices.
        items: ids [m].
        on: the ids for each, ascending and without its own; their ``data`` are not read.
        weight: λ.

    Raises:
        numpy.linalg.LinAlgError: if a system is not positive definite.
    """
    X, transposed = X.astype(np.float64), transposed.astype(np.float64)
    coefficients, sizes = np.zeros(len(on.indices)), on.lengths
    widths = -(-sizes // STEP) * STEP
    for batch in _batches(widths):
        lengths = sizes[batch]
        system = np.repeat(np.arange(len(batch)), lengths)
        slot = np.arange(len(system)) - np.repeat(np.cumsum(lengths) - lengths, lengths)
        places = np.repeat(on.indptr[batch], lengths) + slot
        table = np.full((len(batch), int(widths[batch[-1]]) + 1), X.shape[1])  # n_items where there is no member
        table[system, slot], table[:, -1] = on.indices[places], items[batch]
        solved = _solved(_grams(X, transposed, table), lengths, widths[batch], weight)
        coefficients[places] = solved[system, slot]
    return coefficients


def _batches(widths: Numbers) -> Iterator[Numbers]:
    """The systems that have members, in the order of their widths, so many at a time as ``ENTRIES`` hold."""
    order = np.argsort(widths, kind="stable")
    order = order[widths[order] > 0]
    while len(order):
        count = max(1, ENTRIES // (int(widths[order[-1]]) + 1) ** 2)
        yield order[-count:]
        order = order[:-count]


def _grams(X: sp.csr_matrix, transposed: sp.csr_matrix, table: Numbers) -> Floats:
    """G over each row of ``table`` [m, width] of ids, [m, width, width]; 0 for the id n_items, which is nobody's."""
    (m, width), n = table.shape, X.shape[1]
    grams = np.zeros((m * width, width))
    order = np.argsort(table, axis=None, kind="stable")
    members, starts = np.unique(table.ravel()[order], return_index=True)
    starts = np.append(starts, m * width)
    members = members[: np.searchsorted(members, n)]
    work = transposed[members] @ np.diff(X.indptr).astype(np.float64)
    cuts = np.flatnonzero(np.diff(np.cumsum(work) // OPERATIONS, prepend=-1))
    row = np.zeros(n + 1)
    for low, high in pairwise(np.append(np.unique(np.append(0, cuts)), len(members))):
        G = transposed[members[low:high]] @ X
        for place, first, stop in zip(range(low, high), G.indptr[:-1], G.indptr[1:]):
            row[G.indices[first:stop]] = G.data[first:stop]
            listing = order[starts[place] : starts[place + 1]]
            grams[listing] = row[table[listing // width]]
            row[G.indices[first:stop]] = 0
    return grams.reshape(m, width, width)


def _solved(grams: Floats, sizes: Numbers, widths: Numbers, weight: float) -> Floats:
    """The coefficients [m, width] of the systems in ``grams``, which have the item regressed in their last row.

    Systems of a width are cut out and factorised together; beyond its size, each is filled up with ones.
    """
    coefficients = np.zeros(grams.shape[:2])
    pieces = []
    for width in np.unique(widths).tolist():
        own, count = np.flatnonzero(widths == width), max(1, TOGETHER // (width + 1) ** 2)
        pieces += [(width, own[first : first + count]) for first in range(0, len(own), count)]

    def solve(pieces: Iterator[tuple[int, Numbers]]) -> None:
        for width, own in pieces:
            places = np.append(np.arange(width), -1)
            systems = grams[own[:, None, None], places[:, None], places]
            present = places < sizes[own][:, None]
            systems[:, np.arange(width + 1), np.arange(width + 1)] += np.where(present, weight, 1.0)
            coefficients[own, :width] = _backward(np.linalg.cholesky(systems))

    in_parallel(solve, pieces)
    return coefficients


def _backward(factors: Floats) -> Floats:
    """The solutions x [m, w] of L_Sᵀ·x = y, of the factors L [m, w + 1, w + 1]: y is the last row, L_S the rest."""
    x: Floats = factors[:, -1, :-1].copy()
    for i in range(x.shape[1] - 1, -1, -1):
        x[:, i] /= factors[:, i, i]
        x[:, :i] -= factors[:, i, :i] * x[:, i, None]
    return x
