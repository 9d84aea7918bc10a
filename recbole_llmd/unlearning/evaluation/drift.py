"""How far a corrected mapping matrix moves from a fit from scratch over many sequential requests."""

from __future__ import annotations

import numpy as np
from recbole.config import Config
from recbole.model.abstract_recommender import GeneralRecommender

from recbole_llmd.unlearning.evaluation import metrics
from recbole_llmd.unlearning.evaluation.arms import engine_on_copy
from recbole_llmd.unlearning.evaluation.record import Row
from recbole_llmd.unlearning.mapping.correction import explicit
from recbole_llmd.unlearning.request import Request


def measure_drift(model: GeneralRecommender, config: Config) -> list[Row]:
    """The distance of B to a float64 fit over sequential requests, for each type of number that the model has.

    Each request forgets one interaction, drawn at random by ``seed``; ``unlearn_drift_requests`` says how many.

    Args:
        model: a trained mapping model; it is not changed.
        config: RecBole's Config.

    Returns:
        list of dict: after 1, 2, 4, ... and all requests.
    """
    users, items = model.interaction_matrix.nonzero()
    chosen = np.random.default_rng(config["seed"]).permutation(len(users))[: config["unlearn_drift_requests"]]
    requests = [Request("forget", users[[pair]], items[[pair]]) for pair in chosen]
    mapping = engine_on_copy(model, config).mapping
    return [row for dtype in mapping.TOLERANCE for row in _drift_of(model, config, requests, dtype)]


def _drift_of(model: GeneralRecommender, config: Config, requests: list[Request], dtype: str) -> list[Row]:
    rows: list[Row] = []
    engine = engine_on_copy(model, config, hashes=False)
    engine.refit(dtype)
    most_exact = list(engine.mapping.TOLERANCE)[-1]
    for done, request in enumerate(requests, 1):
        engine.apply(request)
        if done & (done - 1) == 0 or done == len(requests):
            exact = explicit(engine.mapping.fit(engine.X, engine.params, most_exact))
            rows.append(
                {
                    "model": engine.name,
                    "dataset": config["dataset"],
                    "dtype": dtype,
                    "seed": config["seed"],
                    "requests": done,
                    "B_frobenius": metrics.relative_frobenius(explicit(engine.B), exact),
                }
            )
    return rows
