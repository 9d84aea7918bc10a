"""The figures of one arm at a checkpoint, and what they are measured over: the columns of a row, group by group."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter
from typing import Any, NamedTuple, TypeAlias

import numpy as np
import scipy.sparse as sp
import torch
from numpy.typing import NDArray
from recbole.data.dataloader import FullSortEvalDataLoader
from recbole.data.interaction import Interaction
from recbole.model.abstract_recommender import GeneralRecommender

from recbole_llmd.random_state import isolated_random_state
from recbole_llmd.unlearning.evaluation import membership, metrics
from recbole_llmd.unlearning.evaluation.efficiency import request_seconds
from recbole_llmd.unlearning.evaluation.histories import masked_history
from recbole_llmd.unlearning.evaluation.metrics import Matrix, Pairs
from recbole_llmd.unlearning.evaluation.record import Row
from recbole_llmd.unlearning.mapping.correction import interactions

COMPARED_USERS = 2000  # whose scores are compared: a sample of those tested and those who forget
ATTACKED_PAIRS = 20000  # forgotten pairs that the membership attacks look at: a sample
TOP = 20
BLOCK = 256  # users scored at a time

Score: TypeAlias = Callable[[GeneralRecommender, FullSortEvalDataLoader], Mapping[str, Any]]


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
        attacked: which pairs have a negative, in random order.

    >>> X, user = sp.csr_matrix([[0, 0, 0, 0], [0, 1, 1, 0]]), np.array([1])
    >>> forgotten = np.array([1, 1]), np.array([2, 1])  # user 1 forgets item 2, then item 1; never had item 3
    >>> measured = EvaluationSet(user, user, X, X, forgotten, np.array([3, -1]), attacked=np.array([0]))
    >>> measured.mask(released=(user, np.array([2]))).tolist()  # RecBole's padding and item 1, which is still there
    [[True, True, False, False]]
    >>> [(users.tolist(), items.tolist()) for users, items in measured.attacks(requested=2)]
    [([1], [2]), ([1], [3])]
    """

    tested: NDArray[np.int64]
    users: NDArray[np.int64]
    history: sp.csr_matrix
    profiles: sp.csr_matrix
    forgotten: Pairs
    negatives: NDArray[np.int64]
    attacked: NDArray[np.int64]

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
    return EvaluationSet(tested, compared, history, profiles, forgotten, negatives, attacked)


def rows_of(compared: NDArray[np.int64], users: NDArray[np.int64], items: NDArray[np.int64]) -> Pairs:
    """Of pairs (user, item) those of the ``compared`` users (ascending): rows of the users there, and the items.

    >>> rows_of(np.array([2, 5]), np.array([5, 3]), np.array([7, 8]))
    (array([1]), array([7]))
    """
    row = np.minimum(np.searchsorted(compared, users), len(compared) - 1)
    present = compared[row] == users
    return row[present], items[present]


class Ranking(NamedTuple):
    """A model's scores of the compared users [compared, n_items], and their top items [compared, TOP].

    >>> nothing, scores = np.zeros((1, 3), bool), np.array([[0.0, 3.0, 4.0]])
    >>> served, reference = Ranking(scores, np.array([[2, 1]])), Ranking(scores / 5, np.array([[2, 1]]))
    >>> distance = ranking_distance(served, reference, nothing)
    >>> distance["scores_max"], distance["overlap@10"]
    (3.2, 1.0)
    """

    scores: NDArray[Any]
    top: NDArray[np.int64]


def ranking(model: GeneralRecommender, users: NDArray[np.int64], mask: NDArray[np.bool_]) -> Ranking:
    """The model's ranking for these users; ``mask`` [users, n_items] is True where an item may not be recommended."""
    blocks = []
    with isolated_random_state(0):  # RecBole's ADMMSLIM adds noise to its scores: the same for all arms
        for first in range(0, len(users), BLOCK):
            block = torch.from_numpy(users[first : first + BLOCK])
            scores = model.full_sort_predict(Interaction({model.USER_ID: block}))
            blocks.append(np.asarray(scores).reshape(len(block), -1))
    scores = np.concatenate(blocks)
    return Ranking(scores, metrics.top_k(scores, TOP, mask))


def mapping_distance(B: Matrix | None, reference: Matrix) -> Row:
    """Distance of the mapping matrix to the retrained one; None for that of another model."""
    return {
        "B_frobenius": None if B is None else metrics.relative_frobenius(B, reference),
        "B_max": None if B is None else metrics.max_abs(B, reference),
    }


def ranking_distance(served: Ranking, reference: Ranking, mask: NDArray[np.bool_]) -> Row:
    """Distance of scores and top items to the retrained model's."""
    return {
        "scores_frobenius": metrics.relative_frobenius(served.scores, reference.scores),
        "scores_max": metrics.max_abs(served.scores, reference.scores),
        "overlap@10": metrics.overlap(served.top[:, :10], reference.top[:, :10]),
        "overlap@20": metrics.overlap(served.top, reference.top),
        "js": metrics.js_divergence(served.scores, reference.scores, mask),
    }


def forgotten_recall(top: NDArray[np.int64], compared: NDArray[np.int64], forgotten: Pairs) -> Row:
    """How many of the forgotten pairs of the compared users are in their top items."""
    rows, items = rows_of(compared, *forgotten)
    return {
        "forget_recall@10": metrics.forget_recall(top[:, :10], rows, items),
        "forget_recall@20": metrics.forget_recall(top, rows, items),
    }


def membership_aucs(X: sp.csr_matrix, B: Matrix, profiles: sp.csr_matrix, members: Pairs, nonmembers: Pairs) -> Row:
    """Membership attacks by the scores that the model serves, and by querying B with the profiles before forgetting."""
    served = (membership.served_scores(X, B, *pairs) for pairs in (members, nonmembers))
    probed = (membership.probe_scores(profiles, B, *pairs) for pairs in (members, nonmembers))
    return {
        "membership_auc_scores": membership.membership_auc(*served),
        "membership_auc_mapping": membership.membership_auc(*probed),
    }


def exposures(
    top: NDArray[np.int64],
    mask: NDArray[np.bool_],
    forgetting: NDArray[np.bool_],
    sensitive: NDArray[np.int64] | None,
    targets: NDArray[np.int64] | None,
) -> Row:
    """Sensitive items recommended to those who asked to forget them, and spam targets recommended to anybody.

    Args:
        top: the top items of the compared users [compared, TOP].
        mask: bool [compared, n_items], True where an item may not be recommended.
        forgetting: bool [compared], the users who have made a request.
        sensitive, targets: the items, or None in a scenario without any.
    """
    return {
        "sensitive_exposure@10": None if sensitive is None else metrics.exposure(top[forgetting, :10], sensitive),
        "spam_hit@10": None if targets is None else metrics.target_hit_rate(top[:, :10], targets, ~mask),
    }


def utility(score: Score, model: GeneralRecommender, loaders: Mapping[str, FullSortEvalDataLoader | None]) -> Row:
    """RecBole's metrics by group of users; ``loaders`` has each group's, or None for a group without a user."""
    return {
        f"{group}_{metric}": float(value)
        for group, loader in loaders.items()
        if loader is not None
        for metric, value in score(model, loader).items()
    }


def utility_ratios(figures: Row, reference: Row) -> Row:
    """Each metric of all users, divided by the retrained model's.

    >>> utility_ratios({"test_mrr@10": 0.1, "others_mrr@10": 0.3}, {"test_mrr@10": 0.2, "others_mrr@10": 0.3})
    {'ratio_mrr@10': 0.5}
    """
    return {
        f"ratio_{key.removeprefix('test_')}": value / reference[key] if reference[key] else None
        for key, value in figures.items()
        if key.startswith("test_")
    }


def efficiency(seconds: list[float], io_seconds: float, peak_bytes: int | None, retraining_seconds: float) -> Row:
    """The cost of the requests, beside one retraining of ``retraining_seconds`` for each of them.

    >>> efficiency([0.5, 0.5], 0.25, None, 10.0)["speedup"]
    20.0
    """
    per_request = request_seconds(seconds) if seconds else {}
    total, retraining = per_request.get("total"), retraining_seconds * len(seconds)
    return {
        "seconds_p50": per_request.get("p50"),
        "seconds_p90": per_request.get("p90"),
        "seconds_total": total,
        "seconds_io": io_seconds,
        "retraining_seconds": retraining,
        "speedup": retraining / total if total else None,
        "peak_bytes": peak_bytes,
    }


def io_seconds(save: Callable[[Path], None]) -> float:
    """Seconds of writing a model to a file by ``save(path)`` and reading it, once; the file does not stay."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.pth"
        started = perf_counter()
        save(path)
        torch.load(path, map_location="cpu", weights_only=False)
        return perf_counter() - started
