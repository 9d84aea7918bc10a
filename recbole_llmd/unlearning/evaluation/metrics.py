"""The figures of an evaluation of unlearning: how close a model is to the retrained one, what it still remembers, cost.

Pure functions on NumPy and SciPy arrays. A top list holds internal item ids, the best first, -1 where a user has no
further candidate. What cannot be measured (no pair, no user) is None.
"""

import numpy as np
import scipy.sparse as sp
from scipy.special import rel_entr, softmax
from scipy.stats import rankdata

BLOCK = 1 << 20  # matrix entries worked on at a time
PAIRS = 4096  # pairs scored at a time
NEAREST = 5  # a negative is drawn among this many, and those as near as the last of them


# --- completeness: distance to the retrained model --------------------------------------------------------------------


def relative_frobenius(A, reference):
    """Relative Frobenius distance ‖A - R‖_F / ‖R‖_F, with ‖M‖_F = (Σ M_ij²)^½ (Golub & Van Loan, Matrix Computations).

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


def max_abs(A, reference):
    """Largest absolute difference max_ij |A_ij - R_ij|.

    Args:
        A, reference: dense or SciPy sparse, [n, m].

    Raises:
        ValueError: if the shapes differ.
    """
    largest = 0.0
    for difference, _ in _blocks(A, reference):
        largest = np.maximum(largest, np.abs(difference).max(initial=0.0))  # unlike max(), keeps NaN
    return float(largest)


def differing_columns(A, reference, tolerance=1e-3):
    """Number of columns j with max_i |A_ij - R_ij| > tolerance · max_ij |R_ij|: more than rounding.

    Args:
        A, reference: dense or SciPy sparse, [n, m].
    """
    difference = A - reference
    columns = abs(difference).max(axis=0)
    columns = columns.toarray() if sp.issparse(columns) else np.asarray(columns)
    return int((columns > tolerance * abs(reference).max()).sum())


def _blocks(A, reference):
    """Entries of A - R and of R in float64, by blocks of rows: all that are not zero in both, each once."""
    if A.shape != reference.shape:
        raise ValueError(f"matrices of shapes {A.shape} and {reference.shape}: expected equal shapes.")
    if sp.issparse(A) and sp.issparse(reference):
        A, reference = (M.tocsr().astype(np.float64) for M in (A, reference))
        reference.sum_duplicates()
        yield (A - reference).data, reference.data
        return
    A, reference = (M.tocsr() if sp.issparse(M) else np.asarray(M) for M in (A, reference))
    for rows in _row_blocks(A.shape):
        block = _dense(reference[rows])
        yield (_dense(A[rows]) - block).ravel(), block.ravel()


def _row_blocks(shape):
    height = max(1, BLOCK // max(1, shape[1]))
    return (slice(start, start + height) for start in range(0, shape[0], height))


def _dense(rows):
    return (rows.toarray() if sp.issparse(rows) else rows).astype(np.float64)


def top_k(scores, k, mask):
    """The k items of the highest scores per user, the best first; among equal scores the smaller item id comes first.

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


def _fill_top(top, scores, allowed):
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


def overlap(top, reference):
    """Share of items that two top lists have in common, |A ∩ B| / k, mean over users (Fagin et al. 2003).

    Where a user has fewer than k candidates, k is the length of the longer of the two lists; a user without any
    candidate is left out.

    Args:
        top, reference: item ids [users, k], no item twice in a row, -1 for none.

    Returns:
        float or None: in [0, 1]; None without a user.
    """
    both = np.sort(np.concatenate([top, reference], axis=1), axis=1)
    common = ((both[:, 1:] == both[:, :-1]) & (both[:, 1:] >= 0)).sum(axis=1)
    longest = np.maximum((top >= 0).sum(axis=1), (reference >= 0).sum(axis=1))
    return _mean(common[longest > 0] / longest[longest > 0])


def js_divergence(scores, reference, mask):
    """Jensen-Shannon divergence of the softmax distributions over a user's candidates, base 2, mean over users.

    JS(p, q) = ½ KL(p ‖ m) + ½ KL(q ‖ m) with m = ½ (p + q) (Lin, Divergence measures based on the Shannon entropy,
    1991). A user without a candidate is left out.

    Args:
        scores, reference: [users, items].
        mask: bool [users, items], True where an item is no candidate; the same for both.

    Returns:
        float or None: in [0, 1]; None without a user.
    """
    scores, reference, mask = np.asarray(scores), np.asarray(reference), np.asarray(mask)
    found = []
    for rows in _row_blocks(scores.shape):
        some = ~mask[rows].all(axis=1)
        p, q = (
            softmax(np.where(mask[rows], -np.inf, M[rows])[some].astype(np.float64), axis=1)
            for M in (scores, reference)
        )
        middle = 0.5 * (p + q)
        found.append((rel_entr(p, middle) + rel_entr(q, middle)).sum(axis=1) * 0.5 / np.log(2))
    return _mean(np.clip(np.concatenate([np.zeros(0), *found]), 0, 1))


def forget_recall(top, rows, items):
    """Recall on the forget set: share of the forgotten pairs whose item is in the user's top list.

    Zero is not the aim: the retrained model, too, may recommend what was forgotten. Read it beside that model's.

    Args:
        top: item ids [users, k].
        rows, items: pair n is row ``rows[n]`` of ``top`` with item ``items[n]``, [pairs].

    Returns:
        float or None: in [0, 1]; None without a pair.
    """
    return _mean((top[rows] == np.asarray(items)[:, None]).any(axis=1))


# --- membership inference ---------------------------------------------------------------------------------------------


def matched_negatives(known, users, items, rng):
    """For each forgotten pair (u, i) an item that u never had, of about i's popularity, for a membership attack.

    Without the match an attack would measure popularity. j is drawn evenly, with replacement, from the items that are
    as near to i in popularity (number of users) as the fifth nearest.

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
        free = np.ones(len(order) + 1, bool)
        free[place[known.indices[known.indptr[user] : known.indptr[user + 1]]]] = False
        free = np.flatnonzero(free[1:])
        if len(free):
            negatives[pairs] = order[free[_draw_near(ordered[free], popularity[items[pairs]], rng)]]
    return negatives


def _draw_near(values, targets, rng):
    """For each target the place in ``values`` (ascending) of one of those nearest to it, at random."""
    around = np.searchsorted(values, targets)[:, None] + np.arange(-NEAREST, NEAREST)
    inside = (around >= 0) & (around < len(values))
    distances = np.abs(values[around.clip(0, len(values) - 1)] - targets[:, None])
    distances[~inside] = np.iinfo(distances.dtype).max
    reach = np.sort(distances, axis=1)[:, min(NEAREST, len(values)) - 1]
    return rng.integers(np.searchsorted(values, targets - reach), np.searchsorted(values, targets + reach, "right"))


def served_scores(X, B, users, items):
    """What the model serves for pairs (u, i): Σ_j X_uj B_ji, [pairs] in float64.

    Args:
        X: the model's interactions, CSR [n_users, n_items].
        B: its mapping matrix [n_items, n_items], dense or sparse.
        users, items: [pairs].

    Raises:
        ValueError: if an item is negative, as :func:`matched_negatives` marks a pair without a negative.
    """
    return _pair_scores(X, B, users, items, hide=False)


def probe_scores(histories, B, users, items):
    """What B remembers of pairs (u, i), although X may be corrected: Σ_{j≠i} H_uj B_ji, [pairs] in float64.

    The attacker queries the mapping with the rest of the profile that was forgotten.

    Args:
        histories: the users' interactions before forgetting, CSR [n_users, n_items].
        B: the model's mapping matrix [n_items, n_items], dense or sparse.
        users, items: [pairs].

    Raises:
        ValueError: if an item is negative, as :func:`matched_negatives` marks a pair without a negative.
    """
    return _pair_scores(histories, B, users, items, hide=True)


def _pair_scores(X, B, users, items, hide):
    users, items = np.asarray(users, np.int64), np.asarray(items, np.int64)
    if (items < 0).any():
        raise ValueError(f"item = {items.min()}: expected items from 0 on. Leave out the pairs without an item.")
    X, B = X.tocsr(), B.tocsc() if sp.issparse(B) else np.asarray(B)
    scores = np.zeros(len(users))
    for start in range(0, len(users), PAIRS):
        part = slice(start, start + PAIRS)
        profiles = X[users[part]].astype(np.float64)
        owners = np.repeat(np.arange(profiles.shape[0]), np.diff(profiles.indptr))
        targets = items[part][owners]
        if hide:
            profiles.data[profiles.indices == targets] = 0
        if sp.issparse(B):
            scores[part] = np.asarray(profiles.multiply(B[:, items[part]].T.tocsr()).sum(axis=1)).ravel()
        else:
            scores[part] = np.bincount(owners, profiles.data * B[profiles.indices, targets], profiles.shape[0])
    return scores


def membership_auc(members, nonmembers):
    """How well scores tell forgotten pairs from pairs that never were: P(member > nonmember) + ½ P(equal).

    The Mann-Whitney statistic divided by the number of comparisons, which is the area under the ROC curve (Hanley &
    McNeil 1982). Read it beside the retrained model's, because what people liked scores high also in a model that
    never saw it: not 0.5 but the retrained model's AUC is the figure without leakage.

    Args:
        members, nonmembers: scores [n], [m].

    Returns:
        float or None: in [0, 1]; None if there are none of either.
    """
    n, m = len(members), len(nonmembers)
    if not n or not m:
        return None
    ranks = rankdata(np.concatenate([members, nonmembers]))
    return float((ranks[:n].sum() - n * (n + 1) / 2) / (n * m))


# --- what is recommended ----------------------------------------------------------------------------------------------


def exposure(top, items):
    """Sensitive-item exposure: share of a user's recommended items that are sensitive, mean over users.

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


def target_hit_rate(top, items, eligible):
    """Spam-target hit rate: share of (user, target) pairs in which the target is in the user's top list.

    The hit ratio of attacks on recommenders (Mobasher et al., Toward trustworthy recommender systems, 2007), over users
    who could be recommended the target.

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


# --- efficiency -------------------------------------------------------------------------------------------------------


def request_seconds(seconds):
    """Seconds per request at the 50th and 90th percentile (linear between requests), and in total.

    Args:
        seconds: of each request.

    Returns:
        dict: ``p50``, ``p90`` (None without a request), ``total``.
    """
    seconds = np.asarray(seconds, np.float64)
    p50, p90 = np.percentile(seconds, [50, 90]).tolist() if len(seconds) else (None, None)
    return {"p50": p50, "p90": p90, "total": float(seconds.sum())}


def break_even(sizes, seconds, reference_seconds):
    """The smallest request size at which the correction takes as long as retraining.

    Between two measured sizes the time is taken to follow a power law, t = c·sᵉ: linear in log t over log s. Of sizes
    measured more than once the geometric mean of the times counts.

    Args:
        sizes: interactions (or users) of the requests, [n], above 0, in any order.
        seconds: of the corrections, [n].
        reference_seconds: of retraining: one, or [n].

    Returns:
        float or None: the smallest of the sizes if retraining is as fast there already; None if the correction is
        faster at every size.

    Raises:
        ValueError: if a size or a time is not above 0.
    """
    sizes, seconds = np.asarray(sizes, np.float64), np.asarray(seconds, np.float64)
    reference = np.broadcast_to(np.asarray(reference_seconds, np.float64), seconds.shape)
    if not ((sizes > 0).all() and (seconds > 0).all() and (reference > 0).all()):
        raise ValueError("break_even: expected sizes and times above 0.")
    sizes, where, counts = np.unique(sizes, return_inverse=True, return_counts=True)
    excess = np.bincount(where, np.log(seconds) - np.log(reference)) / counts
    reached = np.flatnonzero(excess >= 0)
    if not len(reached):
        return None
    after = reached[0]
    if after == 0:
        return float(sizes[0])
    share = -excess[after - 1] / (excess[after] - excess[after - 1])
    return float(sizes[after - 1] * (sizes[after] / sizes[after - 1]) ** share)


def _mean(values):
    return float(values.mean()) if values.size else None
