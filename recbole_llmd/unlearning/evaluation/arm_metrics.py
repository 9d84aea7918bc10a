"""The figures of one arm at a checkpoint, and what they are measured over: the columns of a row, group by group."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Mapping, Sequence
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
from recbole_llmd.unlearning.evaluation.evaluation_set import EvaluationSet, has_interactions, rows_of, without_pairs
from recbole_llmd.unlearning.evaluation.metrics import Matrix, Pairs
from recbole_llmd.unlearning.evaluation.record import Row
from recbole_llmd.unlearning.evaluation.shadow import SHADOW_PAIRS, Shadows, fit_shadows, likelihood_ratios

TOP = 20
BLOCK = 256  # users scored at a time

Score: TypeAlias = Callable[[GeneralRecommender, FullSortEvalDataLoader], Mapping[str, Any]]


class Ranking(NamedTuple):
    """A model's scores of the compared users [compared, n_items], and their top items [compared, TOP].

    >>> scores = np.array([[0.0, 3.0, 4.0]])
    >>> served, reference = Ranking(scores, np.array([[2, 1]])), Ranking(scores / 5, np.array([[2, 1]]))
    >>> distance = ranking_distance(served, reference)
    >>> distance["scores_max"], distance["overlap@10"], distance["rbo@20"]
    (3.2, 1.0, 1.0)
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
    scores = np.concatenate(blocks) if blocks else np.zeros(mask.shape)
    return Ranking(scores, metrics.top_k(scores, TOP, mask))


def mapping_distance(B: Matrix | None, reference: Matrix) -> Row:
    """Distance of the mapping matrix to the retrained one; None for that of another model."""
    return {
        "B_frobenius": None if B is None else metrics.relative_frobenius(B, reference),
        "B_max": None if B is None else metrics.max_abs(B, reference),
    }


def ranking_distance(served: Ranking, reference: Ranking) -> Row:
    """Distance of scores and top items to the retrained model's; None without a user."""
    some = len(reference.scores) > 0
    return {
        "scores_frobenius": metrics.relative_frobenius(served.scores, reference.scores) if some else None,
        "scores_max": metrics.max_abs(served.scores, reference.scores) if some else None,
        "overlap@10": metrics.overlap(served.top[:, :10], reference.top[:, :10]),
        "overlap@20": metrics.overlap(served.top, reference.top),
        "rbo@20": metrics.rank_biased_overlap(served.top, reference.top),
    }


def forgotten_recall(top: NDArray[np.int64], compared: NDArray[np.int64], forgotten: Pairs) -> Row:
    """How many of the forgotten pairs of the compared users are in their top items."""
    rows, items = rows_of(compared, *forgotten)
    return {
        "forget_recall@10": metrics.forget_recall(top[:, :10], rows, items),
        "forget_recall@20": metrics.forget_recall(top, rows, items),
    }


def membership_aucs(
    X: sp.csr_matrix, B: Matrix, measured: EvaluationSet, requested: int, retained: sp.csr_matrix
) -> Row:
    """Membership attacks by the scores that the model serves, and by querying B with the profiles before forgetting.

    Who keeps nothing in ``retained`` should be served nothing, and is left out of the first in every arm.
    """
    attacks = measured.attacks(requested)
    served = has_interactions(retained)[attacks[0][0]]
    by_scores = (membership.served_scores(X, B, *(ids[served] for ids in pairs)) for pairs in attacks)
    by_mapping = (membership.probe_scores(measured.profiles, B, *pairs) for pairs in attacks)
    return {
        "pairs_attacked": len(served),
        "pairs_left_out": int((~served).sum()),
        "membership_auc_scores": membership.membership_auc(*by_scores),
        "membership_auc_mapping": membership.membership_auc(*by_mapping),
    }


def draw_shadows(
    measured: EvaluationSet, fit: Callable[[sp.csr_matrix], Matrix], number: int, seed: int
) -> tuple[Shadows, Shadows]:
    """Shadow models scoring a sample of the attacked pairs: those forgotten, and those that never were.

    Args:
        measured: of the scenario.
        fit: gives B of an X of fewer users.
        number: of shadow models.
        seed: of their draws.
    """
    chosen = measured.attacked[:SHADOW_PAIRS]
    users, items = (ids[chosen] for ids in measured.forgotten)
    pairs = np.append(users, users), np.append(items, measured.negatives[chosen])
    retained = without_pairs(measured.profiles, measured.forgotten)
    shadows = fit_shadows(measured.profiles, retained, pairs, fit, number, np.random.default_rng(seed))
    return shadows.subset(slice(None, len(chosen))), shadows.subset(slice(len(chosen), None))


def shadow_auc(B: Matrix, measured: EvaluationSet, shadows: tuple[Shadows, Shadows], requested: int) -> Row:
    """The attack by shadow models on the first ``requested`` forgotten pairs, of those in :func:`draw_shadows`."""
    asked = measured.attacked[:SHADOW_PAIRS] < requested
    ratios = (
        likelihood_ratios(membership.probe_scores(measured.profiles, B, *of.pairs), of.scores, of.inside)[asked]
        for of in shadows
    )
    return {"shadow_auc": membership.membership_auc(*ratios)}


def difference_aucs(B: Matrix, before: Matrix, measured: EvaluationSet, requested: int) -> Row:
    """Attacks by somebody who has B of before the requests, too: who withdrew an item, and which items were withdrawn.

    By how much the score that B gives a pair fell, forgotten pairs against those of users who keep the item; and by how
    much an item's column changed, forgotten items against the others that somebody had.
    """
    pairs = measured.comparisons(requested)
    falls = (
        membership.probe_scores(measured.profiles, before, *of) - membership.probe_scores(measured.profiles, B, *of)
        for of in pairs
    )
    changes = metrics.column_change(B, before)
    gone = np.unique(measured.forgotten[1][:requested])
    others = np.setdiff1d(measured.profiles.indices, gone)
    return {
        "difference_auc_users": membership.membership_auc(*falls),
        "difference_auc_items": membership.membership_auc(changes[gone], changes[others]),
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


def activity_gaps(figures: Row) -> Row:
    """Each metric of the more active half of the users, less that of the other half (CURE4Rec, arXiv 2408.14393).

    >>> activity_gaps({"active_mrr@10": 0.5, "inactive_mrr@10": 0.25, "test_mrr@10": 0.375})
    {'activity_gap_mrr@10': 0.25}
    """
    return {
        f"activity_gap_{key.removeprefix('active_')}": value - figures[f"in{key}"]
        for key, value in figures.items()
        if key.startswith("active_") and f"in{key}" in figures
    }


def efficiency(
    seconds: Sequence[float], cold: float | None, saving: float, peak_bytes: int | None, retraining_seconds: float
) -> Row:
    """The cost of the requests, beside one retraining of ``retraining_seconds`` for each of them.

    >>> efficiency([0.75, 0.25], 2.0, 0.25, None, 10.0)["seconds_amortised"]
    0.5

    Args:
        seconds: of each request.
        cold: of the first one with loading the checkpoint, or None if that was not measured.
        saving: of writing the model.
        peak_bytes: as the arm has it.
        retraining_seconds: of one.
    """
    per_request = request_seconds(seconds) if seconds else {}
    total, retraining = per_request.get("total"), retraining_seconds * len(seconds)
    return {
        "seconds_cold": cold,
        "seconds_warm": request_seconds(seconds[1:])["p50"],
        "seconds_amortised": None if total is None else total / len(seconds),
        "seconds_p50": per_request.get("p50"),
        "seconds_p90": per_request.get("p90"),
        "seconds_total": total,
        "seconds_saving": saving,
        "retraining_seconds": retraining,
        "speedup": retraining / total if total else None,
        "peak_bytes": peak_bytes,
    }


def saving_seconds(save: Callable[[Path], None]) -> float:
    """Seconds of writing a model to a file by ``save(path)``, once; the file does not stay."""
    with tempfile.TemporaryDirectory() as folder:
        started = perf_counter()
        save(Path(folder) / "model.pth")
        return perf_counter() - started
