"""The statistics of a comparison: pairing over users and seeds, tests, intervals, and correction for their number."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy import stats

Array = npt.NDArray[Any]
UserValues = tuple[Array, Array]  # user ids and their values, both [n_users]
SeedValues = Mapping[int, UserValues]  # by seed

DRAWS = 10_000  # of a bootstrap
DRAWN_AT_ONCE = 2_000_000  # users, in all draws together
SEED = 2020  # of the draws
SAME = 1e-12  # differences of metrics that differ by less are equal but for rounding


def paired_test(differences: npt.ArrayLike) -> float | None:
    """Two-sided p-value of the paired t-test: could the mean of ``differences`` be 0?

    The t-test, because it tests the mean, which is what the tables show: a ranking metric is 0 for most users in both
    models, and a signed-rank test would leave those users out and test the median of the others. With hundreds of
    users the mean is close to normal whatever the differences' own distribution.

    Returns:
        None if there are fewer than two differences, or all are the same: nothing to judge their spread by; 1 if all of
        them are 0.
    """
    differences = np.asarray(differences, dtype=np.float64)
    if len(differences) > 1 and not differences.any():
        return 1.0
    if len(differences) < 2 or np.ptp(differences) < SAME:
        return None
    return float(stats.ttest_1samp(differences, 0).pvalue)


def user_pairs(ours: SeedValues, baseline: SeedValues) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    """Each user's value and that of the baseline, averaged over the seeds that both have.

    Averaging first leaves one value per user: a user's values under several seeds are no independent observations.

    Args:
        ours: for each seed a pair ``(user ids, values)`` of arrays ``[n_users]``.
        baseline: the same.

    Returns:
        Two arrays ``[n_users]``, of the users that are tested in all of these.

    >>> users = np.array([5, 7])
    >>> user_pairs({1: (users, np.array([0.5, 1.0]))}, {1: (users, np.array([0.5, 0.0]))})
    (array([0.5, 1. ]), array([0.5, 0. ]))
    """
    seeds = [seed for seed in ours if seed in baseline]
    if not seeds:
        return np.zeros(0), np.zeros(0)
    tested = [by_seed[seed][0] for seed in seeds for by_seed in (ours, baseline)]
    users = tested[0]
    for others in tested[1:]:
        users = np.intersect1d(users, others)
    means = [np.mean([_values_of(users, values[seed]) for seed in seeds], axis=0) for values in (ours, baseline)]
    return means[0], means[1]


def user_differences(ours: SeedValues, baseline: SeedValues) -> npt.NDArray[np.float64]:
    """Each user's difference to the baseline (arguments as above): ``[n_users]``."""
    values, theirs = user_pairs(ours, baseline)
    return values - theirs


def relative_interval(
    ours: npt.NDArray[np.float64], theirs: npt.NDArray[np.float64], level: float = 0.95
) -> tuple[float, float] | None:
    """The interval of the relative difference of two means, ``mean(ours) / mean(theirs) - 1``, by a paired bootstrap.

    The percentiles over :data:`DRAWS` draws of as many users with replacement, the same draws in every call. Users for
    whom both values are 0 add nothing to either sum: only how many of the others a draw has is drawn of them.

    Args:
        ours: ``[n_users]``.
        theirs: the values of the same users.
        level: the share of the draws inside.

    Returns:
        Both ends, or None where there are fewer than two users or a draw's ``mean(theirs)`` is 0.

    >>> [round(end, 6) for end in relative_interval(np.array([1.1, 2.2, 3.3]), np.array([1.0, 2.0, 3.0]))]
    [0.1, 0.1]
    """
    rng, n_users = np.random.default_rng(SEED), len(ours)
    counting = (ours != 0) | (theirs != 0)
    values = np.stack([ours[counting], theirs[counting]])
    n_counting = values.shape[1]
    if n_users < 2 or not n_counting:
        return None
    numbers = rng.binomial(n_users, n_counting / n_users, DRAWS)
    sums = []
    for some in np.array_split(numbers, -(-int(numbers.sum()) // DRAWN_AT_ONCE)):
        draw, drawn = np.repeat(np.arange(len(some)), some), rng.integers(n_counting, size=int(some.sum()))
        sums.append([np.bincount(draw, row[drawn], minlength=len(some)) for row in values])
    our_sums, their_sums = np.concatenate(sums, axis=1)
    if not (their_sums > 0).all():
        return None
    low, high = np.quantile(our_sums / their_sums - 1, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


def seed_differences(ours: SeedValues, baseline: SeedValues) -> npt.NDArray[np.float64]:
    """For each seed that both have, the difference of the means over users (arguments as above): ``[n_seeds]``."""
    seeds = [seed for seed in ours if seed in baseline]
    return np.array([user_differences({s: ours[s]}, {s: baseline[s]}).mean() for s in seeds])


def _values_of(users: Array, tested: UserValues) -> npt.NDArray[np.float64]:
    ids, values = tested
    order = np.argsort(ids)
    return np.asarray(values, dtype=np.float64)[order[np.searchsorted(ids[order], users)]]


def holm(pvalues: Sequence[float | None]) -> list[float | None]:
    """p-values adjusted for their number (Holm, 1979): the family's chance of one false finding stays below the level.

    The i-th smallest of m (from 0) is multiplied by m - i; no adjusted value is below the one before it, or above 1.

    Args:
        pvalues: a None (no test) stays None and does not count.

    >>> holm([0.04, None, 0.01])
    [0.04, None, 0.02]
    """
    known = sorted((p, index) for index, p in enumerate(pvalues) if p is not None)
    adjusted: list[float | None] = [None] * len(pvalues)
    largest = 0.0
    for rank, (p, index) in enumerate(known):
        largest = max(largest, min(1.0, p * (len(known) - rank)))
        adjusted[index] = largest
    return adjusted


def groups_of_like_size(
    values: npt.ArrayLike, count: int, zeros: str | None = None
) -> list[tuple[str, npt.NDArray[np.bool_]]]:
    """Cut whole numbers into about ``count`` groups of like size, such as 3–5; equal numbers stay together.

    Args:
        values: ``[n_users]``, whole numbers.
        count: the number of groups.
        zeros: a name that makes the zeros a group of their own.

    Returns:
        Pairs of a name and who belongs to it (bool ``[n_users]``), in rising order.

    >>> [(name, members.tolist()) for name, members in groups_of_like_size([4, 1, 9, 1], 2)]
    [('1', [False, True, False, True]), ('4–9', [True, False, True, False])]
    """
    values = np.asarray(values)
    groups: list[tuple[str, npt.NDArray[np.bool_]]] = []
    to_cut = np.ones(len(values), dtype=bool)
    if zeros is not None:
        if (values == 0).any():
            groups.append((zeros, values == 0))
        to_cut = values > 0
    if not to_cut.any():
        return groups
    # A number's group is where the middle of its equals stands in the order of all.
    group_of = np.zeros(len(values), dtype=int)
    group_of[to_cut] = count * (stats.rankdata(values[to_cut]) - 0.5) / to_cut.sum()
    for number in np.unique(group_of[to_cut]):
        members = to_cut & (group_of == number)
        low, high = values[members].min(), values[members].max()
        groups.append((str(low) if low == high else f"{low}–{high}", members))
    return groups
