"""The figures of an arm against loops over dense matrices."""

from itertools import product

import numpy as np
import pytest
import scipy.sparse as sp

from recbole_llmd.unlearning.evaluation import arm_metrics
from recbole_llmd.unlearning.evaluation.evaluation_set import EvaluationSet, without_pairs
from recbole_llmd.unlearning.evaluation.membership import keepers


def auc(members, others):
    """P(member > other) + half of P(equal), by comparing all."""
    wins = [1.0 if a > b else 0.5 if a == b else 0.0 for a, b in product(members, others)]
    return np.mean(wins)


@pytest.fixture
def case():
    """User 1 leaves, user 2 forgets half; what was measured, the pairs, and B before and after."""
    rng = np.random.default_rng(4)
    X = (rng.random((30, 12)) < 0.5).astype(float)
    X[0] = X[:, 0] = 0
    users, items = (ids.astype(np.int64) for ids in np.nonzero(X))
    forgotten = (users == 1) | ((users == 2) & (items % 2 == 0))
    pairs = users[forgotten], items[forgotten]
    profiles = sp.csr_matrix(X)
    negatives = np.array([rng.choice(np.flatnonzero(X[user, 1:] == 0)) + 1 for user in pairs[0]])
    kept = keepers(without_pairs(profiles, pairs), pairs[1], rng)
    people = np.arange(1, 30)
    measured = EvaluationSet(people, people, profiles, profiles, pairs, negatives, kept, np.arange(len(pairs[0])))
    before, after = rng.standard_normal((2, 12, 12))
    after[:, :4] = before[:, :4]  # some columns stay
    return measured, pairs, before, after


@pytest.mark.parametrize("of_B", [np.asarray, sp.csc_matrix])
def test_attacks_by_the_change_of_B(case, of_B):
    measured, (users, items), before, after = case
    X = measured.profiles.toarray()

    def fall(user, item):
        return sum(X[user, j] * (before[j, item] - after[j, item]) for j in range(12) if j != item)

    figures = arm_metrics.difference_aucs(of_B(after), of_B(before), measured, requested=len(users))
    assert figures["difference_auc_users"] == pytest.approx(
        auc(
            [fall(*pair) for pair in zip(users, items, strict=True)],
            [fall(*pair) for pair in zip(measured.keepers, items, strict=True)],
        )
    )
    one = arm_metrics.difference_aucs(of_B(after), of_B(before), measured, requested=1)
    changed = [np.sqrt(((after - before)[:, item] ** 2).sum()) for item in range(12)]
    others = [changed[item] for item in range(1, 12) if item != items[0]]
    assert one["difference_auc_items"] == pytest.approx(auc([changed[items[0]]], others))
    same = arm_metrics.difference_aucs(of_B(before), of_B(before), measured, requested=len(users))
    assert same["difference_auc_users"] == 0.5


def test_the_attack_by_scores_leaves_out_who_left(case):
    """User 1's pairs are attacked through B alone, in every arm: also where X still has them."""
    measured, (users, items), B, _ = case
    X = measured.profiles
    retained = without_pairs(X, (users, items))
    for of_arm in (X, retained):
        figures = arm_metrics.membership_aucs(of_arm, B, measured, len(users), retained)
        scores, served = of_arm.toarray() @ B, users == 2
        member, other = (scores[users[served], of[served]] for of in (items, measured.negatives))
        assert figures["membership_auc_scores"] == pytest.approx(auc(member, other))
        assert (figures["pairs_attacked"], figures["pairs_left_out"]) == (len(users), (users == 1).sum())
    first = int((users == 1).sum())
    assert arm_metrics.membership_aucs(X, B, measured, first, retained)["membership_auc_scores"] is None


def test_saving_and_the_times_of_requests(tmp_path):
    row = arm_metrics.efficiency([4.0, 1.0, 3.0], 9.0, 0.5, None, 8.0)
    assert (row["seconds_cold"], row["seconds_warm"], row["seconds_amortised"]) == (9.0, 2.0, pytest.approx(8 / 3))
    assert (row["seconds_total"], row["speedup"], row["retraining_seconds"]) == (8.0, 3.0, 24.0)
    one = arm_metrics.efficiency([4.0], None, 0.5, None, 8.0)
    assert (one["seconds_warm"], one["seconds_amortised"]) == (None, 4.0)
    nothing = arm_metrics.efficiency([], None, 0.5, None, 8.0)
    assert nothing["seconds_amortised"] is nothing["seconds_warm"] is nothing["speedup"] is None
    written = []
    assert arm_metrics.saving_seconds(written.append) >= 0 and not written[0].parent.exists()
