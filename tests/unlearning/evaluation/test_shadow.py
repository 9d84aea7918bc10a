"""The attack by shadow models against a naive likelihood ratio, and on real models."""

import numpy as np
import pytest
import scipy.sparse as sp
from scipy.stats import norm

from recbole_llmd.unlearning import Unlearner
from recbole_llmd.unlearning.evaluation.membership import matched_negatives, membership_auc, probe_scores
from recbole_llmd.unlearning.evaluation.shadow import fit_shadows, likelihood_ratios
from tests.helpers.unlearned_matrices import corrected_matrices, half_of, retrained_matrices


def test_likelihood_ratios_are_those_of_two_gaussians():
    rng = np.random.default_rng(0)
    scores, attacked = rng.normal(size=(9, 14)), rng.normal(size=14)
    inside = np.stack([rng.permutation(np.arange(9) < 4) for _ in range(14)], axis=1)
    groups = {flag: [scores[inside[:, pair] == flag, pair] for pair in range(14)] for flag in (True, False)}  # by pair
    sds = {flag: np.sqrt(np.mean([np.var(own, ddof=1) for own in groups[flag]])) for flag in groups}
    expected = [
        norm(groups[True][pair].mean(), sds[True]).logpdf(attacked[pair])
        - norm(groups[False][pair].mean(), sds[False]).logpdf(attacked[pair])
        for pair in range(14)
    ]
    np.testing.assert_allclose(likelihood_ratios(attacked, scores, inside), expected, rtol=1e-10)


def test_scores_of_one_value_are_finite():
    inside = np.array([[True], [True], [False], [False]])
    assert likelihood_ratios(np.array([0.0]), np.zeros((4, 1)), inside).tolist() == [0.0]


def test_shadows_have_half_of_the_users_and_the_pairs_in_half_of_them():
    """User 3 leaves with everything, user 5 with item 1; item 6 was never user 3's. Entries are the user's number."""
    rng = np.random.default_rng(1)
    profiles = (rng.random((41, 8)) < 0.5) * np.arange(41.0)[:, None]
    profiles[3, 6], profiles[5, 1] = 0, 5
    after = profiles.copy()
    after[3], after[5, 1] = 0, 0
    X, retained = sp.csr_matrix(profiles), sp.csr_matrix(after)
    users, items = np.array([3, 5, 3]), np.array([X[3].indices[0], 1, 6])
    fitted = []

    def fit(shadow):
        fitted.append(shadow.toarray())
        return np.eye(8) * len(fitted)

    shadows = fit_shadows(X, retained, (users, items), fit, 6, np.random.default_rng(0))
    assert len(fitted) == 6 and shadows.inside.sum(axis=0).tolist() == [3, 3, 3]
    tried = profiles.copy()
    tried[3, 6] = 1
    present = []
    for shadow, inside in zip(fitted, shadows.inside, strict=True):
        assert not shadow[0].any() and 2 + 17 <= len(shadow) - 1 <= 2 + 20  # the padding, 3, 5, and half of the others
        rows = {int(row.max()): row for row in shadow if row.any()}
        for user, pair in ((3, 0), (5, 1)):
            assert (rows.pop(user, 0 * shadow[0]) == (tried if inside[pair] else after)[user]).all()
        assert inside[0] == inside[2]  # one user's
        assert all((row == profiles[user]).all() for user, row in rows.items())
        present.append(frozenset(rows))
    assert len(set(present)) == 6
    for n in range(6):
        assert (shadows.scores[n] == probe_scores(X, np.eye(8) * (n + 1), users, items)).all()
    again = fit_shadows(X, retained, (users, items), fit, 6, np.random.default_rng(0))
    assert (again.inside == shadows.inside).all() and all(map(np.array_equal, fitted[:6], fitted[6:]))


@pytest.mark.parametrize("name", ["EASE", "ItemKNN"])
def test_the_attack_finds_what_a_model_remembers(trained, name):
    config, loaders, model = trained(name)
    dataset = loaders[0].dataset
    known = sum(loader.dataset.inter_matrix(form="csr") for loader in loaders)
    engine = Unlearner(model, dataset)
    engine.refit()
    X = engine.X.copy()
    users, items = half_of(X)
    negatives = matched_negatives(known, users, items, np.random.default_rng(0))
    retrained = retrained_matrices(name, config, dataset, users, items)
    pairs = np.append(users, users), np.append(items, negatives)
    shadows = fit_shadows(
        X, retrained[0], pairs, lambda M: engine.mapping.fit(M, engine.params), 8, np.random.default_rng(0)
    )

    def attack(B):
        ratios = likelihood_ratios(probe_scores(X, B, *pairs), shadows.scores, shadows.inside)
        return membership_auc(ratios[: len(users)], ratios[len(users) :])

    reference = attack(retrained[1])
    no_op, x_only, corrected = (
        attack(corrected_matrices(model, dataset, mode, users, items)[1]) for mode in ("none", "interaction", "mapping")
    )
    assert no_op == x_only > reference + 0.1
    assert corrected == pytest.approx(reference, abs=1e-3 if name == "EASE" else 0)
