"""Membership inference by shadow models: a likelihood ratio of a model's score with and without a pair.

After LiRA (Carlini et al., S&P 2022, arXiv 2112.03570), which RULI (arXiv 2506.13009) brings to unlearning. The
attacker knows the profiles and the kind of model, fits such models with and without what is in question, and asks under
which of the two the attacked model's score is likelier.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import scipy.sparse as sp
from numpy.typing import NDArray
from scipy.stats import norm

from recbole_llmd.unlearning.evaluation.membership import probe_scores
from recbole_llmd.unlearning.evaluation.metrics import Matrix, Pairs

SHADOW_PAIRS = 500  # forgotten pairs that are attacked, at most
SMALLEST = 1e-12  # standard deviation of shadow scores: a model may give all of them one value


@dataclass(frozen=True, eq=False)
class Shadows:
    """The scores that shadow models give pairs.

    Attributes:
        pairs: users [n] and items [n].
        scores: of each shadow [shadows, n].
        inside: whether the shadow was fitted with the pair [shadows, n]: one half of them, but for an odd one.

    >>> user, item, inside = np.array([1]), np.array([1]), np.array([[True], [True], [False], [False]])
    >>> shadows = Shadows((user, item), np.array([[3.0], [5.0], [0.0], [2.0]]), inside)
    >>> likelihood_ratios(np.array([2.5]), shadows.scores, shadows.inside)  # midway between both means
    array([0.])
    """

    pairs: Pairs
    scores: NDArray[np.float64]
    inside: NDArray[np.bool_]

    def subset(self, chosen: slice) -> Shadows:
        """The scores of these pairs alone."""
        users, items = self.pairs
        return Shadows((users[chosen], items[chosen]), self.scores[:, chosen], self.inside[:, chosen])


def fit_shadows(
    profiles: sp.csr_matrix,
    retained: sp.csr_matrix,
    pairs: Pairs,
    fit: Callable[[sp.csr_matrix], Matrix],
    number: int,
    rng: np.random.Generator,
) -> Shadows:
    """Fit ``number`` shadow models, each on a random half of the users, and score the pairs with all of them.

    The users of the pairs are in all shadows: in a random half of them with their profiles and these pairs, else with
    what they retained, which is nothing for a user who left. Scores are those of
    :func:`~recbole_llmd.unlearning.evaluation.membership.probe_scores`.

    Args:
        profiles, retained: X before and after the requests, CSR [n_users, n_items].
        pairs: users and items in question; those that never were are added to the profiles they are tried in.
        fit: gives B of an X of fewer users, row 0 RecBole's padding; it has to scale penalties to their number.
        number: of shadows, at least 4; of an odd number one more is without each pair.
        rng: numpy.random.Generator.
    """
    users, items = pairs
    asked, n_users = np.unique(users), profiles.shape[0]
    added = sp.csr_matrix((np.ones(len(users)), (users, items)), shape=profiles.shape)
    tried = (profiles + added - added.multiply(profiles > 0)).tocsr()
    halves = np.repeat([True, False], [number // 2, number - number // 2])
    with_pairs = np.stack([rng.permutation(halves) for _ in asked], axis=1)
    scores = np.zeros((number, len(users)))
    for shadow in range(number):
        others = np.setdiff1d(1 + rng.permutation(n_users - 1)[: n_users // 2], asked)
        inside, outside = asked[with_pairs[shadow]], asked[~with_pairs[shadow]]
        X = sp.vstack([profiles[:1], profiles[others], tried[inside], retained[outside]], format="csr")
        scores[shadow] = probe_scores(profiles, fit(X.astype(profiles.dtype)), users, items)
    return Shadows(pairs, scores, with_pairs[:, np.searchsorted(asked, users)])


def likelihood_ratios(
    attacked: NDArray[np.float64], scores: NDArray[np.float64], inside: NDArray[np.bool_]
) -> NDArray[np.float64]:
    """log N(s; μ_in, σ_in²) - log N(s; μ_out, σ_out²) of each pair's attacked score s, [pairs].

    The means are the pair's own; the variances are pooled over all pairs, as LiRA advises for few shadow models.

    >>> likelihood_ratios(np.array([4.0]), np.array([[3.0], [5.0], [0.0], [2.0]]), np.array([[1], [1], [0], [0]]) > 0)
    array([2.25])

    Args:
        attacked: the attacked model's scores [pairs].
        scores, inside: of the shadows [shadows, pairs], at least two with and two without each pair.
    """
    densities = []
    for chosen in (inside, ~inside):
        count = chosen.sum(axis=0)
        mean = np.where(chosen, scores, 0).sum(axis=0) / count
        squares = (np.where(chosen, scores - mean, 0) ** 2).sum(axis=0)
        deviation = max(float(np.sqrt((squares / (count - 1)).mean())), SMALLEST)
        densities.append(norm.logpdf(attacked, mean, deviation))
    return np.asarray(densities[0] - densities[1], np.float64)
