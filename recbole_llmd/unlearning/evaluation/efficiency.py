"""What requests cost: seconds each and in all, and the size at which retraining is as fast. Pure functions."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike


def request_seconds(seconds: ArrayLike) -> dict[str, float | None]:
    """Seconds per request at the 50th and 90th percentile (linear between requests), and in total.

    >>> request_seconds([1.0, 2.0, 3.0])
    {'p50': 2.0, 'p90': 2.8, 'total': 6.0}

    Args:
        seconds: of each request.

    Returns:
        dict: ``p50``, ``p90`` (None without a request), ``total``.
    """
    seconds = np.asarray(seconds, np.float64)
    p50, p90 = np.percentile(seconds, [50, 90]).tolist() if len(seconds) else (None, None)
    return {"p50": p50, "p90": p90, "total": float(seconds.sum())}


def break_even(sizes: ArrayLike, seconds: ArrayLike, reference_seconds: ArrayLike) -> float | None:
    """The smallest request size at which the correction takes as long as retraining.

    Between two measured sizes the time is taken to follow a power law, t = c·sᵉ: linear in log t over log s. Of sizes
    measured more than once the geometric mean of the times counts.

    >>> round(break_even(sizes=[1, 4, 16], seconds=[1.0, 4.0, 16.0], reference_seconds=8.0), 9)
    8.0

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
    distinct, place, counts = np.unique(sizes, return_inverse=True, return_counts=True)
    excess = np.bincount(place, np.log(seconds) - np.log(reference)) / counts
    reached = np.flatnonzero(excess >= 0)
    if not len(reached):
        return None
    after = reached[0]
    if after == 0:
        return float(distinct[0])
    share = -excess[after - 1] / (excess[after] - excess[after - 1])
    return float(distinct[after - 1] * (distinct[after] / distinct[after - 1]) ** share)
