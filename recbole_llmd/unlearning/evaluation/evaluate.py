"""An evaluation of unlearning: the arms of all scenarios on one trained model, as a record."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from typing import Any

from recbole.config import Config
from recbole.data.dataloader import FullSortEvalDataLoader
from recbole.model.abstract_recommender import GeneralRecommender

from recbole_llmd.errors import SettingsError
from recbole_llmd.report.provenance import without_paths
from recbole_llmd.unlearning.evaluation import metrics
from recbole_llmd.unlearning.evaluation.arm_metrics import Score
from recbole_llmd.unlearning.evaluation.drift import measure_drift
from recbole_llmd.unlearning.evaluation.record import EvaluationRecord, Row
from recbole_llmd.unlearning.evaluation.scenarios import Scenario
from recbole_llmd.unlearning.evaluation.study import Study
from recbole_llmd.unlearning.mapping.correction import axis, explicit
from recbole_llmd.unlearning.unlearner import Unlearner


def evaluate_unlearning(
    model: GeneralRecommender,
    scenarios: Iterable[Scenario],
    score: Score,
    *,
    config: Config,
    eval_data: FullSortEvalDataLoader,
    provenance: Mapping[str, Any],
    fits: Iterable[Row] = (),
    show_progress: bool = False,
) -> EvaluationRecord:
    """Compare ways to answer the requests of scenarios with the model retrained on what is retained.

    Changes nothing that it is given, prints nothing but the bar of ``show_progress``, and leaves no file. Called twice,
    it gives the same figures, times and memory aside.

    Args:
        model: a trained mapping model, fitted to its optimum (:func:`refit_to_optimum`).
        scenarios: what is to be forgotten (:func:`~recbole_llmd.unlearning.evaluation.scenarios.scenarios`).
        score: ``score(model, loader)`` gives RecBole's metrics of a model over a full-sort loader.
        config: RecBole's Config of the run: the model's parameters and the keys ``unlearn_...``.
        eval_data: RecBole's full-sort loader of the split to evaluate on.
        provenance: command, commit, machine and versions, for the record.
        fits: of :func:`refit_to_optimum`, for the record.
        show_progress: whether a bar shows the requests done.

    Raises:
        LLMDError: if a request cannot be answered.
        SettingsError: if the model relates users, not items.
    """
    _refuse_neighbours_of_users(model, config)
    study = Study(model, config, eval_data, score, show_progress)
    dataset = eval_data._dataset
    return EvaluationRecord(
        provenance=provenance,
        config=json.loads(json.dumps(without_paths(config.final_config_dict), default=str)),
        datasets={
            "users": dataset.user_num - 1,
            "items": dataset.item_num - 1,
            "interactions": int(model.interaction_matrix.nnz),
        },
        fits=list(fits),
        rows=[row for scenario in scenarios for row in study.run(scenario)],
        drift=measure_drift(model, config) if config["unlearn_drift_requests"] else [],
    )


def refit_to_optimum(model: GeneralRecommender, config: Config, recbole_seconds: float) -> Row:
    """Fit the model again, in place, without the choices that RecBole leaves open (ties, iterations).

    Args:
        model: RecBole's trained mapping model.
        config: RecBole's Config.
        recbole_seconds: what RecBole's own fit took.

    Returns:
        dict: the times of both fits, and how far their B are apart.

    Raises:
        SettingsError: if the model relates users, not items.
    """
    _refuse_neighbours_of_users(model, config)
    engine = Unlearner(model, config, hashes=False)
    recboles = explicit(engine.B)
    receipt = engine.refit()
    optimum = explicit(engine.B)
    return {
        "model": engine.name,
        "dataset": config["dataset"],
        "recbole_seconds": recbole_seconds,
        "seconds": receipt.seconds,
        "B_frobenius": metrics.relative_frobenius(recboles, optimum),
        "columns": metrics.differing_columns(recboles, optimum),
    }


def _refuse_neighbours_of_users(model: GeneralRecommender, config: Config) -> None:
    if not axis(Unlearner(model, config, hashes=False).params):
        raise SettingsError(
            f"knn_method = 'user': {type(model).__name__} then relates users, and the evaluation compares item-item "
            "mappings and averages them over shards of users. Set knn_method: item, or correct without --evaluate."
        )
