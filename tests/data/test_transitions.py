"""Transitions against loops over whole sequences."""

import numpy as np
import pytest

from recbole_llmd.data.transitions import (
    Samples,
    following,
    history_products,
    linear_model,
    transition_counts,
    weighted_histories,
)

N_ITEMS = 12


def samples_of(sequences, length=8):
    """What RecBole makes of sequences: a sample for every item but the first, its history before it."""
    rows = [(user, list(s[:k])[-length:], s[k]) for user, s in enumerate(sequences) for k in range(1, len(s))]
    items = np.array([history + [0] * (length - len(history)) for _, history, _ in rows])
    lengths, targets = np.array([len(h) for _, h, _ in rows]), np.array([t for *_, t in rows])
    return Samples(items, lengths, targets, np.array([user for user, *_ in rows]))


@pytest.fixture(scope="module")
def sequences():
    generator = np.random.default_rng(3)
    return [generator.integers(1, N_ITEMS, size=size).tolist() for size in (2, 5, 7, 3, 8, 6)]


def test_counts_are_those_of_every_pair(sequences):
    expected = np.zeros((N_ITEMS, N_ITEMS))
    for sequence in sequences:
        for q in range(len(sequence)):
            for p in range(q):
                expected[sequence[p], sequence[q]] += 0.7 ** (q - p - 1)
    counts = transition_counts(samples_of(sequences), lambda distance: 0.7 ** (distance - 1), N_ITEMS)
    np.testing.assert_allclose(counts.toarray(), expected)


def test_the_linear_model_is_the_regression_of_what_follows_on_what_went_before(sequences):
    before, after = [], []
    for sequence in sequences:
        for cut in range(1, len(sequence)):  # one row a cut: decayed from the cut, both ways
            p, f = np.zeros(N_ITEMS), np.zeros(N_ITEMS)
            for distance, item in enumerate(reversed(sequence[:cut])):
                p[item] += 0.6**distance
            for distance, item in enumerate(sequence[cut:]):
                f[item] += 0.6**distance
            before.append(p), after.append(f)
    p, f = np.array(before), np.array(after)
    expected = np.linalg.solve(p.T @ p + 2 * np.eye(N_ITEMS), p.T @ f)
    assert (expected < -1e-3).any()
    samples = samples_of(sequences)
    got = linear_model(history_products(samples, 0.6, N_ITEMS), following(samples, 0.6, N_ITEMS), 2.0)
    np.testing.assert_allclose(got, np.maximum(expected, 0), atol=1e-5)


def test_histories_are_rows_of_weights():
    rows = weighted_histories(np.array([[3, 1, 3], [2, 0, 0]]), np.array([3, 1]), 0.5, 4).toarray()
    np.testing.assert_allclose(rows, [[0, 0.5, 0, 1.25], [0, 0, 1, 0]])


def test_what_is_taken_off_leaves_nothing(sequences):
    """Decimal weights summed as they are leave rounding errors in place of zeros."""
    samples, none = samples_of(sequences * 40), samples_of(sequences)[:0]
    for count in (following, history_products):
        whole, part, rest = (count(given, 0.8, N_ITEMS) for given in (samples, samples[:100], samples[100:]))
        assert ((whole - part) != rest).nnz == 0 and whole.nnz > 40
        assert count(none, 0.8, N_ITEMS).nnz == 0
