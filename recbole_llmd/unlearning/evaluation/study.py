"""The arms of unlearning compared: completeness, utility and efficiency, each beside the retrained model.

Every arm answers the same requests and is measured over the same users, with the same history mask (the retained
interactions) and by the same timers. Without the retrained arm there is no figure.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
import scipy.sparse as sp
from numpy.typing import NDArray
from recbole.config import Config
from recbole.data.dataloader import FullSortEvalDataLoader
from recbole.model.abstract_recommender import GeneralRecommender
from tqdm import tqdm

from recbole_llmd.unlearning.evaluation import arm_metrics, metrics
from recbole_llmd.unlearning.evaluation.arm_metrics import Ranking, Score
from recbole_llmd.unlearning.evaluation.arms import ARMS, MODES, Arm, Retrained, engine_on_copy
from recbole_llmd.unlearning.evaluation.cold_start import cold_seconds
from recbole_llmd.unlearning.evaluation.evaluation_set import EvaluationSet, draw_evaluation_set, has_interactions
from recbole_llmd.unlearning.evaluation.histories import retained_loader
from recbole_llmd.unlearning.evaluation.metrics import Pairs
from recbole_llmd.unlearning.evaluation.one_step import OneStep
from recbole_llmd.unlearning.evaluation.record import Row
from recbole_llmd.unlearning.evaluation.scenarios import Scenario
from recbole_llmd.unlearning.evaluation.shadow import Shadows
from recbole_llmd.unlearning.evaluation.shards import PARTITIONS, Sharded, scaled_penalties
from recbole_llmd.unlearning.mapping import ease
from recbole_llmd.unlearning.mapping.correction import explicit
from recbole_llmd.unlearning.request import Request
from recbole_llmd.unlearning.unlearner import Unlearner

RELEARNING = ("X only", "corrected", "retrained")  # the arms that learn again what was forgotten
LOADED = {"corrected": "mapping", "retrained": "retrain"}  # the arms whose first request is timed from a checkpoint


class Prepared(NamedTuple):
    """What is drawn and timed once for a scenario.

    Attributes:
        scenario: whose requests they are.
        measured: the users and pairs to measure over.
        shadows: what shadow models say of forgotten pairs and of those that never were, or None.
        cold: seconds of the first request with loading the checkpoint, by arm; empty where something is injected.

    >>> Prepared(None, None, None, {"corrected": 1.5}).cold["corrected"]
    1.5
    """

    scenario: Scenario
    measured: EvaluationSet
    shadows: tuple[Shadows, Shadows] | None
    cold: dict[str, float]


class Study:
    r"""Runs scenarios on copies of one trained model.

    Args:
        model: the trained mapping model, fitted to its optimum (``Unlearner.refit``); it is not changed.
        config: RecBole's Config of the run.
        eval_data: RecBole's full-sort loader of the split to evaluate on; it is not changed.
        score: ``score(model, loader)`` gives RecBole's metrics.
        show_progress: whether a bar shows the requests done.

    >>> from pathlib import Path
    >>> from recbole.data import create_dataset, data_preparation
    >>> from recbole.utils import get_model
    >>> pairs = [f"u{n % 10}\ti{(n // 10 + n * n) % 17}" for n in range(60)]
    >>> Path("toy").mkdir()
    >>> _ = Path("toy/toy.inter").write_text("\n".join(["user_id:token\titem_id:token", *pairs]))
    >>> settings = {"data_path": ".", "reg_weight": 1.0, "unlearn_shards": 2, "unlearn_relearn": False}
    >>> settings |= {"unlearn_shadow_models": 0}
    >>> config = Config("EASE", "toy", config_dict=settings)
    >>> train_data, valid_data, _ = data_preparation(config, create_dataset(config))
    >>> model = get_model("EASE")(config, train_data.dataset)
    >>> users, items = (ids[:2] for ids in model.interaction_matrix.nonzero())
    >>> scenario = Scenario("interactions", None, None, 1, [Request("forget", users, items)], checkpoints=[1])
    >>> rows = Study(model, config, valid_data, score=lambda model, loader: {}).run(scenario)
    >>> distance = {row["arm"]: row["B_frobenius"] for row in rows}  # to the retrained model's B
    >>> distance["retrained"], distance["corrected"] < 1e-5 < distance["X only"]
    (0.0, True)
    """

    def __init__(
        self,
        model: GeneralRecommender,
        config: Config,
        eval_data: FullSortEvalDataLoader,
        score: Score,
        show_progress: bool = False,
    ) -> None:
        self.model, self.config, self.eval_data, self.score = model, config, eval_data, score
        self.show_progress = show_progress
        self._sharded: dict[str, Sharded] = {}  # fitted once for all scenarios that inject nothing

    def run(self, scenario: Scenario) -> list[Row]:
        """All rows of a scenario: one for each arm at each checkpoint, as ``docs/unlearning.md`` describes them."""
        engine = engine_on_copy(self.model, self.config, "retrain")
        inject(engine, scenario)
        prepared = self._prepared(engine, scenario)
        arms = self._arms(engine.model, scenario)
        rows: list[Row] = []
        bar = tqdm(scenario.requests, desc=scenario.label, ncols=100, disable=not self.show_progress)
        for done, request in enumerate(bar, 1):
            for arm in arms.values():
                if arm.name != "original":
                    arm.answer(request)
            if done in scenario.checkpoints:
                rows += self._measure(arms, prepared, done, "forget")
        if self.config["unlearn_relearn"]:
            learning = {name: arms[name] for name in RELEARNING}
            self._relearn(learning, prepared.measured, scenario)
            rows += self._measure(learning, prepared, len(scenario.requests), "learn")
        return rows

    def _prepared(self, engine: Unlearner, scenario: Scenario) -> Prepared:
        measured = draw_evaluation_set(self.eval_data, engine.X, scenario.pairs, scenario.seed)
        shadows, number = None, self.config["unlearn_shadow_models"]
        if number:

            def fit(X: sp.csr_matrix) -> Any:
                share = X.shape[0] / engine.model.n_users
                return explicit(engine.mapping.fit(X, scaled_penalties(engine.params, share)))

            shadows = arm_metrics.draw_shadows(measured, fit, number, scenario.seed)
        cold: dict[str, float] = {}
        if scenario.injected is None:  # what is injected is in no data file
            dataset, request = self.eval_data._sampler.datasets[0], scenario.requests[0]
            seconds = cold_seconds(self.model, self.config, dataset, request, LOADED.values())
            cold = {name: seconds[mode] for name, mode in LOADED.items() if mode in seconds}
        return Prepared(scenario, measured, shadows, cold)

    def _arms(self, model: GeneralRecommender, scenario: Scenario) -> dict[str, Arm]:
        arms = [Arm(name, model, self.config, mode) for name, mode in MODES.items()]
        if arms[0].engine.mapping is ease:  # whose B is a function of an inverse
            arms.append(OneStep(model, self.config))
        for name in PARTITIONS:
            if scenario.injected is None and name not in self._sharded:
                self._sharded[name] = Sharded(name, model, self.config)
            fitted = self._sharded.get(name) if scenario.injected is None else None
            arms.append(Sharded(name, model, self.config, fitted))
        arms.append(Retrained(model, self.config))
        return {arm.name: arm for arm in sorted(arms, key=lambda arm: ARMS.index(arm.name))}

    def _relearn(self, arms: Mapping[str, Arm], measured: EvaluationSet, scenario: Scenario) -> None:
        """Let the arms learn again what they forgot, the last request first; only this is then timed."""
        for arm in arms.values():
            arm.seconds = []
        for request in reversed(scenario.requests):
            values = np.asarray(measured.profiles[request.users, request.items]).ravel()
            for arm in arms.values():
                arm.answer(Request("learn", request.users, request.items, values.astype(np.float64)))

    def _measure(self, arms: Mapping[str, Arm], prepared: Prepared, done: int, phase: str) -> list[Row]:
        """A row for each arm, after ``done`` requests; in the phase ``"learn"`` they are learned again by now."""
        for arm in arms.values():
            arm.settle()
        scenario, retrained = prepared.scenario, arms["retrained"]
        requested = sum(map(len, scenario.requests[:done]))
        users, items = (ids[:requested] for ids in prepared.measured.forgotten)
        released = (users, items) if phase == "forget" else (users[:0], items[:0])
        retained = retrained.engine.X
        measured = prepared.measured.served(retained)
        mask = measured.mask(released)
        loaders = self._loaders(measured, retained, released, users)
        utility = {name: arm_metrics.utility(self.score, arm.model, loaders) for name, arm in arms.items()}
        reference = arm_metrics.ranking(retrained.model, measured.users, mask)
        about = self._about(scenario, done, phase, retrained.engine.name, users)
        about["users_compared"] = len(measured.users)
        about["users_left_out"] = len(prepared.measured.users) - len(measured.users)
        rows = []
        for name, arm in arms.items():
            served = reference if arm is retrained else arm_metrics.ranking(arm.model, measured.users, mask)
            row = {**about, "arm": name, "method": arm.method}
            row |= _completeness(arm, served, retrained, reference)
            row |= _remembered(arm, served, measured, scenario, requested, mask, retained)
            row |= _attacked(arm, measured, prepared.shadows, requested, phase)
            row |= utility[name] | arm_metrics.utility_ratios(utility[name], utility["retrained"])
            row |= arm_metrics.activity_gaps(utility[name])
            row |= _efficiency(arm, retrained, prepared.cold.get(name) if phase == "forget" else None)
            rows.append(row)
        return rows

    def _loaders(
        self, measured: EvaluationSet, retained: sp.csr_matrix, released: Pairs, users: NDArray[np.int64]
    ) -> dict[str, FullSortEvalDataLoader | None]:
        """RecBole's loaders by group of tested users; who keeps nothing is in the first alone, as in its result."""
        served = measured.tested[has_interactions(retained)[measured.tested]]
        active = metrics.more_active(np.diff(retained.indptr)[served])
        groups = {
            "test": None,
            "forgetting": np.intersect1d(served, users),
            "others": np.setdiff1d(measured.tested, users),
            "active": served[active],
            "inactive": served[~active],
        }
        return {name: retained_loader(self.eval_data, *released, only=only) for name, only in groups.items()}

    def _about(self, scenario: Scenario, done: int, phase: str, model: str, users: NDArray[np.int64]) -> Row:
        return {
            "model": model,
            "dataset": self.config["dataset"],
            "scenario": scenario.name,
            "group": scenario.group,
            "ratio": scenario.ratio,
            "seed": scenario.seed,
            "checkpoint": done / len(scenario.requests),
            "requests": done,
            "users": len(np.unique(users)),
            "interactions": len(users),
            "phase": phase,
        }


def inject(engine: Unlearner, scenario: Scenario) -> None:
    """Train an engine's model, in place, on what the scenario injects beside the dataset."""
    if scenario.injected is not None:
        engine.apply(scenario.injected)


def _completeness(arm: Arm, served: Ranking, retrained: Arm, reference: Ranking) -> Row:
    B = None if isinstance(arm, Sharded) else explicit(arm.engine.B)  # theirs is the mean of other models'
    distance = arm_metrics.mapping_distance(B, explicit(retrained.engine.B))
    return distance | arm_metrics.ranking_distance(served, reference)


def _remembered(
    arm: Arm,
    served: Ranking,
    measured: EvaluationSet,
    scenario: Scenario,
    requested: int,
    mask: NDArray[np.bool_],
    retained: sp.csr_matrix,
) -> Row:
    """What the arm still shows of the first ``requested`` forgotten pairs."""
    users, items = (ids[:requested] for ids in measured.forgotten)
    engine, forgetting = arm.engine, np.isin(measured.users, users)
    return {
        **arm_metrics.forgotten_recall(served.top, measured.users, (users, items)),
        **arm_metrics.membership_aucs(engine.X, explicit(engine.B), measured, requested, retained),
        **arm_metrics.exposures(served.top, mask, forgetting, scenario.sensitive, scenario.targets),
    }


def _attacked(
    arm: Arm, measured: EvaluationSet, shadows: tuple[Shadows, Shadows] | None, requested: int, phase: str
) -> Row:
    """What the arm shows to somebody who fits shadow models, or has its B of before the requests.

    None of the latter where the requests were learned again, so that B is that of before to rounding.
    """
    figures: Row = dict.fromkeys(("shadow_auc", "difference_auc_users", "difference_auc_items"))
    if shadows:
        figures |= arm_metrics.shadow_auc(explicit(arm.engine.B), measured, shadows, requested)
    if phase == "forget":
        figures |= arm_metrics.difference_aucs(explicit(arm.engine.B), explicit(arm.before), measured, requested)
    return figures


def _efficiency(arm: Arm, retrained: Arm, cold: float | None) -> Row:
    saving = arm_metrics.saving_seconds(arm.engine.save)
    return arm_metrics.efficiency(arm.seconds, cold, saving, arm.peak_bytes, float(np.mean(retrained.seconds)))
