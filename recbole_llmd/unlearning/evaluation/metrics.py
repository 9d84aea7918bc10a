"""How close a model's mapping, scores and recommendations are to the retrained model's, and what it recommends.

Pure functions on NumPy and SciPy arrays. A top list holds internal item ids, the best first, -1 where a user has no
further candidate. What cannot be measured (no pair, no user) is None.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, TypeAlias

import numpy as np
import scipy.sparse as sp
from numpy.typing import ArrayLike, NDArray

Matrix: TypeAlias = "NDArray[Any] | sp.spmatrix"
Pairs: TypeAlias = tuple[NDArray[np.int64], NDArray[np.int64]]  # users [n] and items [n], internal ids

BLOCK = 1 << 20  # matrix entries worked on at a time


# --- completeness: distance to the retrained model --------------------------------------------------------------------


def relative_frobenius(A: Matrix, reference: Matrix) -> float:
    """Relative Frobenius distance ‖A - R‖_F / ‖R‖_F, with ‖M‖_F = (Σ M_ij²)^½ (Golub & Van Loan, Matrix Computations).

    >>> relative_frobenius(np.array([[3.0, 1.0]]), np.array([[4.0, 1.0]])) == 1 / 17**0.5
    True

    Args:
        A, reference: dense or SciPy sparse, [n, m].

    Returns:
        float: 0 for equal matrices; if the reference is zero, 0 where A is zero too and infinity otherwise.

    Raises:
        ValueError: if the shapes differ.
    """
    distance = size = 0.0
    for difference, block in _blocks(A, reference):
        distance += np.vdot(difference, difference)
        size += np.vdot(block, block)
    if size == 0:
        return 0.0 if distance == 0 else float("inf")
    return float(np.sqrt(distance / size))


def max_abs(A: Matrix, reference: Matrix) -> float:
    """Largest absolute difference max_ij |A_ij - R_ij|.

    >>> max_abs(np.array([[3.0, 1.0]]), np.array([[4.0, 1.0]]))
    1.0

    Args:
        A, reference: dense or SciPy sparse, [n, m].

    Raises:
        ValueError: if the shapes differ.
    """
    largest = 0.0
    for difference, _ in _blocks(A, reference):
        largest = np.maximum(largest, np.abs(difference).max(initial=0.0))  # unlike max(), keeps NaN
    return float(largest)


def differing_columns(A: Matrix, reference: Matrix, tolerance: float = 1e-3) -> int:
    """Number of columns j with max_i |A_ij - R_ij| > tolerance · max_ij |R_ij|: more than rounding.

    >>> differing_columns(np.array([[3.0, 1.0]]), np.array([[4.0, 1.0]]))
    1

    Args:
        A, reference: dense or SciPy sparse, [n, m].
        tolerance: the share of the largest entry that counts as rounding.
    """
    difference = A - reference
    columns = abs(difference).max(axis=0)
    columns = columns.toarray() if sp.issparse(columns) else np.asarray(columns)
    return int((columns > tolerance * abs(reference).max()).sum())


def _blocks(A: Matrix, reference: Matrix) -> Iterator[tuple[NDArray[np.float64], NDArray[np.float64]]]:
    """Entries of A - R and of R in float64, by blocks of rows: all that are not zero in both, each once."""
    if A.shape != reference.shape:
        raise ValueError(f"matrices of shapes {A.shape} and {reference.shape}: expected equal shapes.")
    if not isinstance(A, np.ndarray) and not isinstance(reference, np.ndarray):
        A, reference = (M.tocsr().astype(np.float64) for M in (A, reference))
        reference.sum_duplicates()
        yield (A - reference).data, reference.data
        return
    A, reference = (np.asarray(M) if isinstance(M, np.ndarray) else M.tocsr() for M in (A, reference))
    for rows in _row_blocks(A.shape):
        block = _dense(reference[rows])
        yield (_dense(A[rows]) - block).ravel(), block.ravel()


def _row_blocks(shape: tuple[int, ...]) -> Iterator[slice]:
    height = max(1, BLOCK // max(1, shape[1]))
    return (slice(first, first + height) for first in range(0, shape[0], height))


def _dense(rows: Matrix) -> NDArray[np.float64]:
    dense: NDArray[np.float64] = rows if isinstance(rows, np.ndarray) else rows.toarray()
    return dense.astype(np.float64)


def top_k(scores: ArrayLike, k: int, mask: ArrayLike) -> NDArray[np.int64]:
    """The k items of the highest scores per user, the best first; among equal scores the smaller item id comes first.

    >>> top_k([[9.0, 1.0, 5.0, 5.0]], 2, [[True, False, False, False]])
    array([[2, 3]])

    Args:
        scores: [users, items], without NaN.
        k: length of the lists.
        mask: bool [users, items], True where an item may not be recommended (history, padding).

    Returns:
        numpy.ndarray: item ids [users, k], filled with -1 where a user has fewer than k candidates.

    Raises:
        ValueError: if a score is NaN, which has no rank.
    """
    scores, mask = np.asarray(scores), np.asarray(mask)
    top = np.full((len(scores), k), -1, np.int64)
    for rows in _row_blocks(scores.shape):
        _fill_top(top[rows], np.where(mask[rows], -np.inf, scores[rows]), ~mask[rows])
    return top


def _fill_top(top: NDArray[np.int64], scores: NDArray[Any], allowed: NDArray[np.bool_]) -> None:
    if np.isnan(scores).any():
        raise ValueError("a score is NaN: it has no rank. Check the model that gave the scores.")
    width = min(top.shape[1], scores.shape[1])
    if not width:
        return
    last = np.partition(scores, -width, axis=1)[:, -width, None]
    above = scores > last
    ties = (scores == last) & allowed
    chosen = above | (ties & (np.cumsum(ties, axis=1) <= width - above.sum(axis=1, keepdims=True)))
    rows, items = np.nonzero(chosen)  # by user, then by item id: a stable sort keeps the order of ids among ties
    order = np.lexsort((-scores[rows, items], rows))
    places = np.arange(len(rows)) - np.searchsorted(rows, rows)
    top[rows, places] = items[order]


def overlap(top: NDArray[np.int64], reference: NDArray[np.int64]) -> float | None:
    """Share of items that two top lists have in common, |A ∩ B| / k, mean over users (Fagin et al. 2003).

    Where a user has fewer than k candidates, k is the length of the longer of the two lists; a user without any
    candidate is left out.

    >>> overlap(np.array([[4, 2], [3, -1]]), np.array([[2, 7], [3, -1]]))
    0.75

    Args:
        top, reference: item ids [users, k], no item twice in a row, -1 for none.

    Returns:
        float or None: in [0, 1]; None without a user.
    """
    both = np.sort(np.concatenate([top, reference], axis=1), axis=1)
    common = ((both[:, 1:] == both[:, :-1]) & (both[:, 1:] >= 0)).sum(axis=1)
    longest = np.maximum((top >= 0).sum(axis=1), (reference >= 0).sum(axis=1))
    return _mean(common[longest > 0] / longest[longest > 0])


def rank_biased_overlap(top: NDArray[np.int64], reference: NDArray[np.int64], persistence: float = 0.9) -> float | None:
    """Rank-biased overlap of two rankings, mean over users: agreement at every depth, the first places counting most.

    Σ_d p^(d-1)·|A_d ∩ B_d|/d over the depths d = 1 to k, divided by Σ_d p^(d-1), so that equal lists have 1 (Webber,
    Moffat and Zobel, A similarity measure for indefinite rankings, TOIS 2010, cut off at k). Unlike :func:`overlap` it
    sees an exchange of places. Where a user has fewer than k candidates, k is the length of the longer list; a user
    without any candidate is left out.

    >>> rank_biased_overlap(np.array([[1, 2]]), np.array([[2, 1]]), persistence=0.5)
    0.3333333333333333

    Args:
        top, reference: item ids [users, k], the best first, no item twice in a row, -1 for none.
        persistence: p, the weight of a place relative to the one before.

    Returns:
        float or None: in [0, 1]; None without a user.
    """
    depths = np.arange(1, top.shape[1] + 1)
    longest = np.maximum((top >= 0).sum(axis=1), (reference >= 0).sum(axis=1))
    weights = np.where(depths <= longest[:, None], persistence ** (depths - 1), 0.0)
    same = (top[:, :, None] == reference[:, None]) & (top >= 0)[:, :, None]
    reached = np.maximum(*np.indices(same.shape[1:])) + 1  # the depth at which a pair of places is in both lists
    common = np.stack([(same & (reached <= depth)).sum(axis=(1, 2)) for depth in depths], axis=1)
    some = longest > 0
    return _mean((weights * common / depths)[some].sum(axis=1) / weights[some].sum(axis=1))


def column_change(B: Matrix, before: Matrix) -> NDArray[np.float64]:
    """How much each column of a mapping matrix changed, ‖B_·j - before_·j‖, [n_items].

    >>> column_change(np.array([[0.0, 5.0], [1.0, 0.0]]), np.array([[0.0, 2.0], [1.0, 4.0]]))
    array([0., 5.])
    """
    squares = np.zeros(B.shape[1])
    B, before = (np.asarray(M) if isinstance(M, np.ndarray) else M.tocsr() for M in (B, before))
    for rows in _row_blocks(B.shape):
        squares += (_dense(B[rows] - before[rows]) ** 2).sum(axis=0)
    return np.sqrt(squares)


# --- what is recommended ----------------------------------------------------------------------------------------------


def forget_recall(top: NDArray[np.int64], rows: NDArray[np.int64], items: ArrayLike) -> float | None:
    """Recall on the forget set: share of the forgotten pairs whose item is in the user's top list.

    Zero is not the aim: the retrained model, too, may recommend what was forgotten. Read it beside that model's.

    >>> forget_recall(np.array([[4, 2], [3, -1]]), np.array([0, 1]), [2, 4])
    0.5

    Args:
        top: item ids [users, k].
        rows, items: pair n is row ``rows[n]`` of ``top`` with item ``items[n]``, [pairs].

    Returns:
        float or None: in [0, 1]; None without a pair.
    """
    return _mean((top[rows] == np.asarray(items)[:, None]).any(axis=1))


def exposure(top: NDArray[np.int64], items: ArrayLike) -> float | None:
    """Sensitive-item exposure: share of a user's recommended items that are sensitive, mean over users.

    >>> exposure(np.array([[4, 2], [3, -1]]), [3, 4])
    0.75

    Args:
        top: item ids [users, k], -1 for none; a user without a recommended item is left out.
        items: the sensitive items.

    Returns:
        float or None: in [0, 1]; None without a user.
    """
    valid = top >= 0
    some = valid.any(axis=1)
    sensitive = np.isin(top, np.asarray(items)) & valid
    return _mean(sensitive[some].sum(axis=1) / valid[some].sum(axis=1))


def target_hit_rate(top: NDArray[np.int64], items: ArrayLike, eligible: NDArray[np.bool_]) -> float | None:
    """Spam-target hit rate: share of (user, target) pairs in which the target is in the user's top list.

    The hit ratio of attacks on recommenders (Mobasher et al., Toward trustworthy recommender systems, 2007), over users
    who could be recommended the target.

    >>> target_hit_rate(np.array([[2, 1], [1, 3]]), [2], np.ones((2, 4), bool))
    0.5

    Args:
        top: item ids [users, k].
        items: the targets [targets].
        eligible: bool [users, n_items], True where an item is not in the user's history.

    Returns:
        float or None: in [0, 1]; None without an eligible pair.
    """
    items = np.asarray(items, np.int64)
    hits = np.stack([(top == item).any(axis=1) for item in items], axis=1) if len(items) else np.zeros((len(top), 0))
    return _mean(hits[np.asarray(eligible)[:, items]])


def more_active(lengths: ArrayLike) -> NDArray[np.bool_]:
    """Which users are the more active half: those with the most interactions, of equal ones the later; the odd one too.

    >>> more_active([5, 1, 3]).tolist()
    [True, False, True]

    Args:
        lengths: interactions of each user [users].
    """
    active = np.zeros(len(np.asarray(lengths)), bool)
    active[np.argsort(lengths, kind="stable")[len(active) // 2 :]] = True
    return active


def _mean(values: NDArray[Any]) -> float | None:
    return float(values.mean()) if values.size else None
