"""The statistics of a comparison: pairing over users and seeds, tests, and correction for their number."""

import numpy as np
from scipy import stats

SAME = 1e-12  # differences of metrics that differ by less are equal but for rounding


def paired_test(differences):
    """Two-sided p-value of the paired t-test: could the mean of ``differences`` be 0?

    The t-test, because it tests the mean, which is what the tables show: a ranking metric is 0 for most users in both
    models, and a signed-rank test would leave those users out and test the median of the others. With hundreds of
    users the mean is close to normal whatever the differences' own distribution.

    Returns:
        float: None if there are fewer than two differences, or all are the same: nothing to judge their spread by; 1 if
        all of them are 0.
    """
    differences = np.asarray(differences, dtype=np.float64)
    if len(differences) > 1 and not differences.any():
        return 1.0
    if len(differences) < 2 or np.ptp(differences) < SAME:
        return None
    return float(stats.ttest_1samp(differences, 0).pvalue)


def user_differences(ours, baseline):
    """Each user's difference to the baseline, averaged over the seeds that both have.

    Averaging first leaves one value per user: a user's values under several seeds are no independent observations.

    Args:
        ours (dict): for each seed a pair ``(user ids, values)`` of arrays ``[n_users]``.
        baseline (dict): the same.

    Returns:
        numpy.ndarray: ``[n_users]``, of the users that are tested in all of these.
    """
    seeds = [seed for seed in ours if seed in baseline]
    if not seeds:
        return np.zeros(0)
    tested = [by_seed[seed][0] for seed in seeds for by_seed in (ours, baseline)]
    users = tested[0]
    for others in tested[1:]:
        users = np.intersect1d(users, others)
    return np.mean([_values_of(users, ours[seed]) - _values_of(users, baseline[seed]) for seed in seeds], axis=0)


def seed_differences(ours, baseline):
    """For each seed that both have, the difference of the means over users (arguments as above): ``[n_seeds]``."""
    seeds = [seed for seed in ours if seed in baseline]
    return np.array([user_differences({s: ours[s]}, {s: baseline[s]}).mean() for s in seeds])


def _values_of(users, tested):
    ids, values = tested
    order = np.argsort(ids)
    return np.asarray(values, dtype=np.float64)[order[np.searchsorted(ids[order], users)]]


def holm(pvalues):
    """p-values adjusted for their number (Holm, 1979): the family's chance of one false finding stays below the level.

    The i-th smallest of m (from 0) is multiplied by m - i; no adjusted value is below the one before it, or above 1.

    Args:
        pvalues (list): floats; a None (no test) stays None and does not count.
    """
    known = sorted((p, index) for index, p in enumerate(pvalues) if p is not None)
    adjusted, largest = [None] * len(pvalues), 0.0
    for rank, (p, index) in enumerate(known):
        largest = max(largest, min(1.0, p * (len(known) - rank)))
        adjusted[index] = largest
    return adjusted


def groups(values, n, zero=None):
    """Cut whole numbers into about ``n`` groups of like size, such as 3–5; equal numbers stay together.

    Args:
        values: ``[n_users]``, whole numbers.
        n (int): the number of groups.
        zero (str): a name that makes the zeros a group of their own.

    Returns:
        list of pairs: a name, and who belongs to it (bool ``[n_users]``); in rising order.
    """
    values = np.asarray(values)
    found = []
    inside = np.ones(len(values), dtype=bool)
    if zero is not None:
        if (values == 0).any():
            found.append((zero, values == 0))
        inside = values > 0
    if not inside.any():
        return found
    # A number's group is where the middle of its equals stands in the order of all.
    place = np.zeros(len(values), dtype=int)
    place[inside] = n * (stats.rankdata(values[inside]) - 0.5) / inside.sum()
    for number in np.unique(place[inside]):
        members = inside & (place == number)
        low, high = values[members].min(), values[members].max()
        found.append((str(low) if low == high else f"{low}–{high}", members))
    return found
