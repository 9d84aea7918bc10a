"""Membership inference on forgotten pairs: what a model still shows of them to somebody who asks.

Pure functions on NumPy and SciPy arrays. A pair is a user with an item, by internal ids.
"""

from __future__ import annotations

import numpy as np
import scipy.sparse as sp
from numpy.typing import ArrayLike, NDArray
from scipy.stats import rankdata

from recbole_llmd.unlearning.evaluation.metrics import Matrix

PAIRS = 4096  # pairs scored at a time
NEAREST = 5  # a negative is drawn among this many, and those as near as the last of them


def matched_negatives(
    known: sp.csr_matrix, users: ArrayLike, items: ArrayLike, rng: np.random.Generator
) -> NDArray[np.int64]:
    """For each forgotten pair (u, i) an item that u never had, of about i's popularity, for a membership attack.

    Without the match an attack would measure popularity. j is drawn evenly, with replacement, from the items that are
    as near to i in popularity (number of users) as the fifth nearest.

    >>> known = sp.csr_matrix([[0, 1, 1, 1], [0, 1, 0, 1]])
    >>> matched_negatives(known, [0, 1], [1, 3], np.random.default_rng(0))
    array([-1,  2])

    Args:
        known: CSR [n_users, n_items], every interaction of the dataset in all splits, the forgotten ones included.
        users, items: the forgotten pairs [n].
        rng: numpy.random.Generator.

    Returns:
        numpy.ndarray: items [n], never 0 (RecBole's padding); -1 where the user has everything.
    """
    known = known.tocsr().copy()
    known.sum_duplicates()
    known.eliminate_zeros()
    popularity = np.bincount(known.indices, minlength=known.shape[1])
    order = 1 + np.argsort(popularity[1:], kind="stable")
    place = np.argsort(np.append(0, order))
    ordered = popularity[order]
    users, items = np.asarray(users), np.asarray(items)
    negatives = np.full(len(users), -1, np.int64)
    by_user = np.argsort(users, kind="stable")
    for pairs in np.split(by_user, np.flatnonzero(np.diff(users[by_user])) + 1):
        if not len(pairs):
            break
        user = users[pairs[0]]
        is_free = np.ones(len(order) + 1, bool)
        is_free[place[known.indices[known.indptr[user] : known.indptr[user + 1]]]] = False
        free = np.flatnonzero(is_free[1:])
        if len(free):
            negatives[pairs] = order[free[_draw_near(ordered[free], popularity[items[pairs]], rng)]]
    return negatives


def keepers(retained: sp.csr_matrix, items: ArrayLike, rng: np.random.Generator) -> NDArray[np.int64]:
    """For each forgotten pair's item a user who keeps it, drawn evenly, [n]; -1 where nobody does.

    >>> keepers(sp.csr_matrix([[0, 0, 0], [0, 1, 0]]), [1, 2], np.random.default_rng(0))
    array([ 1, -1])

    Args:
        retained: CSR [n_users, n_items] without the forgotten pairs.
        items: of the forgotten pairs [n].
        rng: numpy.random.Generator.
    """
    owners = retained.tocsc()
    items = np.asarray(items)
    first, number = owners.indptr[items], np.diff(owners.indptr)[items]
    users = np.full(len(items), -1, np.int64)
    some = number > 0
    users[some] = owners.indices[first[some] + rng.integers(0, number[some])]
    return users


def _draw_near(values: NDArray[np.int64], targets: NDArray[np.int64], rng: np.random.Generator) -> NDArray[np.int64]:
    """For each target the place in ``values`` (ascending) of one of those nearest to it, at random."""
    around = np.searchsorted(values, targets)[:, None] + np.arange(-NEAREST, NEAREST)
    inside = (around >= 0) & (around < len(values))
    distances = np.abs(values[around.clip(0, len(values) - 1)] - targets[:, None])
    distances[~inside] = np.iinfo(distances.dtype).max
    reach = np.sort(distances, axis=1)[:, min(NEAREST, len(values)) - 1]
    first, last = np.searchsorted(values, targets - reach), np.searchsorted(values, targets + reach, "right")
    return np.asarray(rng.integers(first, last), np.int64)


def served_scores(X: sp.csr_matrix, B: Matrix, users: ArrayLike, items: ArrayLike) -> NDArray[np.float64]:
    """What the model serves for pairs (u, i): Σ_j X_uj B_ji, [pairs] in float64.

    >>> served_scores(sp.csr_matrix([[0.0, 2.0, 1.0]]), np.array([[0, 0, 0], [0, 0.5, 3], [0, 4, 7]]), [0], [1])
    array([5.])

    Args:
        X: the model's interactions, CSR [n_users, n_items].
        B: its mapping matrix [n_items, n_items], dense or sparse.
        users, items: [pairs].

    Raises:
        ValueError: if an item is negative, as :func:`matched_negatives` marks a pair without a negative.
    """
    return _pair_scores(X, B, users, items, hide=False)


def probe_scores(histories: sp.csr_matrix, B: Matrix, users: ArrayLike, items: ArrayLike) -> NDArray[np.float64]:
    """What B remembers of pairs (u, i), although X may be corrected: Σ_{j≠i} H_uj B_ji, [pairs] in float64.

    The attacker queries the mapping with the rest of the profile that was forgotten.

    >>> probe_scores(sp.csr_matrix([[0.0, 2.0, 1.0]]), np.array([[0, 0, 0], [0, 0.5, 3], [0, 4, 7]]), [0], [1])
    array([4.])

    Args:
        histories: the users' interactions before forgetting, CSR [n_users, n_items].
        B: the model's mapping matrix [n_items, n_items], dense or sparse.
        users, items: [pairs].

    Raises:
        ValueError: if an item is negative, as :func:`matched_negatives` marks a pair without a negative.
    """
    return _pair_scores(histories, B, users, items, hide=True)


def _pair_scores(X: sp.csr_matrix, B: Matrix, users: ArrayLike, items: ArrayLike, hide: bool) -> NDArray[np.float64]:
    users, items = np.asarray(users, np.int64), np.asarray(items, np.int64)
    if (items < 0).any():
        raise ValueError(f"item = {items.min()}: expected items from 0 on. Leave out the pairs without an item.")
    X, B = X.tocsr(), np.asarray(B) if isinstance(B, np.ndarray) else B.tocsc()
    scores = np.zeros(len(users))
    for first in range(0, len(users), PAIRS):
        chunk = slice(first, first + PAIRS)
        profiles = X[users[chunk]].astype(np.float64)
        owners = np.repeat(np.arange(profiles.shape[0]), np.diff(profiles.indptr))
        targets = items[chunk][owners]
        if hide:
            profiles.data[profiles.indices == targets] = 0
        if isinstance(B, np.ndarray):
            scores[chunk] = np.bincount(owners, profiles.data * B[profiles.indices, targets], profiles.shape[0])
        else:
            scores[chunk] = np.asarray(profiles.multiply(B[:, items[chunk]].T.tocsr()).sum(axis=1)).ravel()
    return scores


def membership_auc(members: ArrayLike, nonmembers: ArrayLike) -> float | None:
    """How well scores tell forgotten pairs from pairs that never were: P(member > nonmember) + ½ P(equal).

    The Mann-Whitney statistic divided by the number of comparisons, which is the area under the ROC curve (Hanley &
    McNeil 1982). Read it beside the retrained model's, because what people liked scores high also in a model that
    never saw it: not 0.5 but the retrained model's AUC is the figure without leakage.

    >>> membership_auc([3.0, 1.0], [2.0, 0.0])
    0.75

    Args:
        members, nonmembers: scores [n], [m].

    Returns:
        float or None: in [0, 1]; None if there are none of either.
    """
    members, nonmembers = np.asarray(members), np.asarray(nonmembers)
    n, m = len(members), len(nonmembers)
    if not n or not m:
        return None
    ranks = rankdata(np.concatenate([members, nonmembers]))
    return float((ranks[:n].sum() - n * (n + 1) / 2) / (n * m))
