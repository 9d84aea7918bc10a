"""The statistics of a comparison against SciPy, pandas and cases worked out by hand."""

import itertools

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from recbole_llmd.comparison.statistics import (
    groups_of_like_size,
    holm,
    paired_test,
    relative_interval,
    seed_differences,
    user_differences,
    user_pairs,
)


def test_paired_test_is_scipys_on_the_two_samples():
    rng = np.random.default_rng(0)
    ours, theirs = rng.random(40) + 0.1, rng.random(40)
    assert paired_test(ours - theirs) == pytest.approx(stats.ttest_rel(ours, theirs).pvalue, rel=1e-9)


@pytest.mark.parametrize("differences, expected", [([], None), ([0.3], None), ([0.0, 0.0], 1.0), ([0.1, 0.1], None)])
def test_paired_test_where_there_is_nothing_to_test(differences, expected):
    assert paired_test(differences) == expected


def test_differences_pair_users_and_seeds_and_leave_out_what_only_one_has():
    """Against pandas, on users in different orders; seed 3 and users 5 and 6 are in one of the two only."""
    ours = {
        1: (np.array([4, 2, 3, 5]), np.array([0.5, 1.0, 0.0, 9.0])),
        2: (np.array([2, 3, 4]), np.array([0.2, 0.4, 0.6])),
        3: (np.array([2, 3, 4]), np.array([7.0, 7.0, 7.0])),
    }
    theirs = {
        1: (np.array([2, 3, 4]), np.array([0.5, 0.5, 0.5])),
        2: (np.array([6, 4, 3, 2]), np.array([9.0, 0.1, 0.2, 0.3])),
    }

    def table(tested):
        return pd.DataFrame({seed: pd.Series(values, index=users) for seed, (users, values) in tested.items()})

    difference = (table(ours) - table(theirs))[[1, 2]].dropna()
    assert user_differences(ours, theirs) == pytest.approx(difference.mean(axis=1).to_numpy())
    assert seed_differences(ours, theirs) == pytest.approx(difference.mean(axis=0).to_numpy())
    assert len(user_differences(ours, {9: theirs[1]})) == 0


def test_user_pairs_are_the_means_over_the_seeds_that_both_have():
    users = np.array([3, 4])
    ours = {1: (users, np.array([0.2, 0.4])), 2: (users[::-1], np.array([0.8, 0.6])), 3: (users, np.array([9.0, 9.0]))}
    theirs = {1: (users, np.array([0.1, 0.0])), 2: (users, np.array([0.3, 0.0]))}
    values, base = user_pairs(ours, theirs)
    assert values == pytest.approx([0.4, 0.6]) and base == pytest.approx([0.2, 0.0])
    assert [len(side) for side in user_pairs(ours, {9: theirs[1]})] == [0, 0]


def _sparse_pairs(rng, n_users, gain=0.1):
    theirs = np.where(rng.random(n_users) < 0.2, rng.random(n_users), 0)
    return np.where(rng.random(n_users) < 0.1, rng.random(n_users), theirs * (1 + gain)), theirs


def test_the_interval_is_that_of_a_bootstrap_that_draws_every_user():
    """Against resampling whole rows one draw at a time, most of which are 0 in both models."""
    rng = np.random.default_rng(3)
    ours, theirs = _sparse_pairs(rng, 300)
    ratios = []
    for _ in range(10_000):
        drawn = rng.integers(300, size=300)
        ratios.append(ours[drawn].mean() / theirs[drawn].mean() - 1)
    low, high = relative_interval(ours, theirs)
    width = np.ptp(np.quantile(ratios, [0.025, 0.975]))
    assert [low, high] == pytest.approx(np.quantile(ratios, [0.025, 0.975]), abs=0.05 * width)
    assert low < ours.mean() / theirs.mean() - 1 < high
    assert relative_interval(ours, theirs) == (low, high)  # the draws are the same
    half = relative_interval(ours, theirs, level=0.5)
    assert low < half[0] < half[1] < high


def test_the_interval_holds_the_truth_as_often_as_it_says():
    rng, held = np.random.default_rng(4), []
    population = _sparse_pairs(rng, 100_000)
    truth = population[0].mean() / population[1].mean() - 1
    for _ in range(200):
        sample = rng.integers(100_000, size=400)
        low, high = relative_interval(population[0][sample], population[1][sample])
        held.append(low < truth < high)
    assert 0.88 < np.mean(held) < 0.99


@pytest.mark.parametrize("ours, theirs", [([], []), ([0.5], [0.5]), ([0.0] * 3, [0.0] * 3), ([1.0] * 3, [0.0] * 3)])
def test_there_is_no_interval_without_users_or_a_base(ours, theirs):
    assert relative_interval(np.array(ours), np.array(theirs)) is None


def test_holm_by_hand():
    # sorted: 0.01*4, 0.02*3, 0.03*2 -> not below the one before, 0.5*1
    assert holm([0.5, 0.01, None, 0.03, 0.02]) == pytest.approx([0.5, 0.04, None, 0.06, 0.06])
    assert holm([0.6, 0.7]) == pytest.approx([1.0, 1.0])
    assert holm([]) == []


def test_holm_keeps_false_findings_below_the_level():
    """Twenty tests of nothing, 1,000 times: at least one finding at 5% in at most 5% of the times."""
    p = np.random.default_rng(1).random((1000, 20))
    share_with_finding = np.mean([min(holm(list(row))) < 0.05 for row in p])
    assert share_with_finding < 0.07 and np.mean((p < 0.05).any(axis=1)) > 0.5


def test_groups_are_of_like_size_in_order_and_keep_equals_together():
    values = np.random.default_rng(2).integers(1, 101, 1000)
    groups = groups_of_like_size(values, 4)
    assert len(groups) == 4 and np.sum([members for _, members in groups], axis=0).tolist() == [1] * 1000
    assert all(200 < members.sum() < 300 for _, members in groups)
    for (name, members), (_, after) in itertools.pairwise(groups):
        assert values[members].max() < values[after].min()
        assert name == f"{values[members].min()}–{values[members].max()}"


def test_groups_of_few_numbers_and_of_zeros():
    assert [(name, members.sum()) for name, members in groups_of_like_size([1] * 6 + [7, 8], 4)] == [
        ("1", 6),
        ("7–8", 2),
    ]
    named = groups_of_like_size([0, 5, 0, 5], 4, zeros="never")
    assert [(name, members.tolist()) for name, members in named] == [
        ("never", [True, False, True, False]),
        ("5", [False, True, False, True]),
    ]
    assert [name for name, _ in groups_of_like_size([0, 0], 4, zeros="never")] == ["never"]
