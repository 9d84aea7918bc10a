"""What the arms of a scenario are measured over, the same for all of them: users, pairs, and who else has what."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import scipy.sparse as sp
from numpy.typing import NDArray
from recbole.data.dataloader import FullSortEvalDataLoader

from recbole_llmd.unlearning.evaluation import membership
from recbole_llmd.unlearning.evaluation.histories import masked_history
from recbole_llmd.unlearning.evaluation.metrics import Pairs
from recbole_llmd.unlearning.mapping.correction import interactions

COMPARED_USERS = 2000  # whose scores are compared: a sample of those tested and those who forget
ATTACKED_PAIRS = 20000  # forgotten pairs that the membership attacks look at: a sample


@dataclass(frozen=True, eq=False)
class EvaluationSet:
    """What the arms of a scenario are measured over, the same for all of them. All ids are internal.

    Attributes:
        tested: the users of the evaluated split.
        users: those whose scores are compared, ascending [compared]: of the tested ones and those who forget.
        history: what RecBole masks, CSR [n_users, n_items].
        profiles: X before any request, CSR [n_users, n_items].
        forgotten: the pairs of all requests, in order: (users [n], items [n]).
        negatives: an item for each of those pairs that its user never had [n]; -1 where there is none.
        keepers: a user for each of those pairs who keeps its item [n]; -1 where nobody does.
        attacked: which pairs have a negative, in random order.

    >>> X, user = sp.csr_matrix([[0, 0, 0, 0], [0, 1, 1, 0]]), np.array([1])
    >>> forgotten = np.array([1, 1]), np.array([2, 1])  # user 1 forgets item 2, then item 1; never had item 3
    >>> nobody = np.array([-1, -1])
    >>> measured = EvaluationSet(user, user, X, X, forgotten, np.array([3, -1]), nobody, attacked=np.array([0]))
    >>> measured.mask(released=(user, np.array([2]))).tolist()  # RecBole's padding and item 1, which is still there
    [[True, True, False, False]]
    >>> [(users.tolist(), items.tolist()) for users, items in measured.attacks(requested=2)]
    [([1], [2]), ([1], [3])]
    >>> len(measured.served(retained=0 * X).users)  # a user who left with everything
    0
    """

    tested: NDArray[np.int64]
    users: NDArray[np.int64]
    history: sp.csr_matrix
    profiles: sp.csr_matrix
    forgotten: Pairs
    negatives: NDArray[np.int64]
    keepers: NDArray[np.int64]
    attacked: NDArray[np.int64]

    def served(self, retained: sp.csr_matrix) -> EvaluationSet:
        """The set without the users who keep nothing in ``retained`` [n_users, n_items]: all their scores are 0."""
        return replace(self, users=self.users[has_interactions(retained)[self.users]])

    def mask(self, released: Pairs) -> NDArray[np.bool_]:
        """What may not be recommended to the compared users [compared, n_items]: their history but for these pairs."""
        mask: NDArray[np.bool_] = self.history[self.users].toarray() > 0
        mask[rows_of(self.users, *released)] = False
        mask[:, 0] = True
        return mask

    def attacks(self, requested: int) -> tuple[Pairs, Pairs]:
        """Members and nonmembers of the membership attacks on the first ``requested`` forgotten pairs: a sample."""
        attacked = self.attacked[self.attacked < requested][:ATTACKED_PAIRS]
        users, items = (ids[attacked] for ids in self.forgotten)
        return (users, items), (users, self.negatives[attacked])

    def comparisons(self, requested: int) -> tuple[Pairs, Pairs]:
        """The same for attacks on two models: forgotten pairs, and those of the same items with users who keep them."""
        chosen = self.attacked[self.attacked < requested]
        chosen = chosen[self.keepers[chosen] >= 0][:ATTACKED_PAIRS]
        users, items = (ids[chosen] for ids in self.forgotten)
        return (users, items), (self.keepers[chosen], items)


def draw_evaluation_set(
    eval_data: FullSortEvalDataLoader, profiles: sp.csr_matrix, forgotten: Pairs, seed: int
) -> EvaluationSet:
    """The evaluation set of a scenario, drawn by its seed.

    Args:
        eval_data: RecBole's full-sort loader of the split to evaluate on.
        profiles: X before any request, CSR [n_users, n_items], with the injected users.
        forgotten: the pairs of all requests, in order.
        seed: of the samples.
    """
    everything = interactions(eval_data._sampler.datasets, profiles.shape)
    known = ((everything + profiles) != 0).astype(np.float32).tocsr()
    tested = eval_data.uid_list.numpy()
    rng = np.random.default_rng(seed)
    users, items = forgotten
    negatives = membership.matched_negatives(known, users, items, rng)
    attacked = rng.permutation(np.flatnonzero(negatives >= 0))
    candidates = np.union1d(tested, users[users < eval_data._dataset.user_num])
    compared = np.sort(rng.choice(candidates, min(COMPARED_USERS, len(candidates)), replace=False))
    history = masked_history(eval_data, profiles.shape)
    keepers = membership.keepers(without_pairs(profiles, forgotten), items, rng)
    return EvaluationSet(tested, compared, history, profiles, forgotten, negatives, keepers, attacked)


def without_pairs(X: sp.csr_matrix, pairs: Pairs) -> sp.csr_matrix:
    """X without these pairs.

    >>> without_pairs(sp.csr_matrix([[2.0, 1.0]]), (np.array([0]), np.array([0]))).toarray()
    array([[0., 1.]])
    """
    gone = sp.csr_matrix((np.ones(len(pairs[0])), pairs), shape=X.shape)
    retained = sp.csr_matrix(X - X.multiply(gone > 0))
    retained.eliminate_zeros()
    return retained


def has_interactions(X: sp.csr_matrix) -> NDArray[np.bool_]:
    """Which users have an interaction in X [n_users].

    >>> has_interactions(sp.csr_matrix([[0, 0], [0, 1]])).tolist()
    [False, True]
    """
    return np.asarray(abs(X).sum(axis=1)).ravel() > 0


def rows_of(compared: NDArray[np.int64], users: NDArray[np.int64], items: NDArray[np.int64]) -> Pairs:
    """Of pairs (user, item) those of the ``compared`` users (ascending): rows of the users there, and the items.

    >>> rows_of(np.array([2, 5]), np.array([5, 3]), np.array([7, 8]))
    (array([1]), array([7]))
    """
    present = np.isin(users, compared)
    return np.searchsorted(compared, users[present]), items[present]
