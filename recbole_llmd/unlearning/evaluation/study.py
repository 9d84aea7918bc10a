"""The arms of unlearning compared: completeness, utility and efficiency, each beside the retrained model.

Every arm answers the same requests and is measured over the same users, with the same history mask (the retained
interactions) and by the same timers. Without the retrained arm there is no figure.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray
from recbole.config import Config
from recbole.data.dataloader import FullSortEvalDataLoader
from recbole.model.abstract_recommender import GeneralRecommender
from tqdm import tqdm

from recbole_llmd.unlearning.evaluation import arm_metrics
from recbole_llmd.unlearning.evaluation.arm_metrics import EvaluationSet, Ranking, Score
from recbole_llmd.unlearning.evaluation.arms import MODES, Arm, Retrained, Shard, Sisa, engine_on_copy
from recbole_llmd.unlearning.evaluation.histories import retained_loader
from recbole_llmd.unlearning.evaluation.record import Row
from recbole_llmd.unlearning.evaluation.scenarios import Scenario
from recbole_llmd.unlearning.request import Request
from recbole_llmd.unlearning.unlearner import Unlearner

RELEARNING = ("X only", "corrected", "retrained")  # the arms that learn again what was forgotten


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
        self._shards: list[Shard] | None = None  # of SISA, fitted once for all scenarios that inject nothing

    def run(self, scenario: Scenario) -> list[Row]:
        """All rows of a scenario: one for each arm at each checkpoint, as ``docs/unlearning.md`` describes them."""
        engine = engine_on_copy(self.model, self.config, "retrain")
        inject(engine, scenario)
        profiles = engine.X
        measured = arm_metrics.draw_evaluation_set(self.eval_data, profiles, scenario.pairs, scenario.seed)
        arms = self._arms(engine.model, scenario)
        rows: list[Row] = []
        bar = tqdm(scenario.requests, desc=scenario.label, ncols=100, disable=not self.show_progress)
        for done, request in enumerate(bar, 1):
            for arm in arms.values():
                if arm.name != "original":
                    arm.answer(request)
            if done in scenario.checkpoints:
                rows += self._measure(arms, measured, scenario, done, "forget")
        if self.config["unlearn_relearn"]:
            learning = {name: arms[name] for name in RELEARNING}
            self._relearn(learning, measured, scenario)
            rows += self._measure(learning, measured, scenario, len(scenario.requests), "learn")
        return rows

    def _arms(self, model: GeneralRecommender, scenario: Scenario) -> dict[str, Arm]:
        arms = [Arm(name, model, self.config, mode) for name, mode in MODES.items()]
        if scenario.injected is None and self._shards is None:
            self._shards = Sisa(model, self.config).shards
        sisa = Sisa(model, self.config, self._shards if scenario.injected is None else None)
        return {arm.name: arm for arm in (*arms, sisa, Retrained(model, self.config))}

    def _relearn(self, arms: Mapping[str, Arm], measured: EvaluationSet, scenario: Scenario) -> None:
        """Let the arms learn again what they forgot, the last request first; only this is then timed."""
        for arm in arms.values():
            arm.seconds = []
        for request in reversed(scenario.requests):
            values = np.asarray(measured.profiles[request.users, request.items]).ravel()
            for arm in arms.values():
                arm.answer(Request("learn", request.users, request.items, values.astype(np.float64)))

    def _measure(
        self, arms: Mapping[str, Arm], measured: EvaluationSet, scenario: Scenario, done: int, phase: str
    ) -> list[Row]:
        """A row for each arm, after ``done`` requests; in the phase ``"learn"`` they are learned again by now."""
        for arm in arms.values():
            arm.settle()
        requested = sum(map(len, scenario.requests[:done]))
        users, items = (ids[:requested] for ids in measured.forgotten)
        released = (users, items) if phase == "forget" else (users[:0], items[:0])
        mask, retrained = measured.mask(released), arms["retrained"]
        groups = {"test": None, "forgetting": np.unique(users), "others": np.setdiff1d(measured.tested, users)}
        loaders = {name: retained_loader(self.eval_data, *released, only=only) for name, only in groups.items()}
        utility = {name: arm_metrics.utility(self.score, arm.model, loaders) for name, arm in arms.items()}
        reference = arm_metrics.ranking(retrained.model, measured.users, mask)
        about = self._about(scenario, done, phase, retrained.engine.name, users)
        rows = []
        for name, arm in arms.items():
            served = reference if arm is retrained else arm_metrics.ranking(arm.model, measured.users, mask)
            row = {**about, "arm": name, "method": arm.method}
            row |= _completeness(arm, served, retrained, reference, mask)
            row |= _remembered(arm, served, measured, scenario, requested, mask)
            row |= utility[name] | arm_metrics.utility_ratios(utility[name], utility["retrained"])
            row |= _efficiency(arm, retrained)
            rows.append(row)
        return rows

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


def _completeness(arm: Arm, served: Ranking, retrained: Arm, reference: Ranking, mask: NDArray[np.bool_]) -> Row:
    B = None if isinstance(arm, Sisa) else arm.engine.B  # SISA's is the mean of other models'
    distance = arm_metrics.mapping_distance(B, retrained.engine.B)
    return distance | arm_metrics.ranking_distance(served, reference, mask)


def _remembered(
    arm: Arm, served: Ranking, measured: EvaluationSet, scenario: Scenario, requested: int, mask: NDArray[np.bool_]
) -> Row:
    """What the arm still shows of the first ``requested`` forgotten pairs."""
    users, items = (ids[:requested] for ids in measured.forgotten)
    engine, forgetting = arm.engine, np.isin(measured.users, users)
    return {
        **arm_metrics.forgotten_recall(served.top, measured.users, (users, items)),
        **arm_metrics.membership_aucs(engine.X, engine.B, measured.profiles, *measured.attacks(requested)),
        **arm_metrics.exposures(served.top, mask, forgetting, scenario.sensitive, scenario.targets),
    }


def _efficiency(arm: Arm, retrained: Arm) -> Row:
    seconds = arm_metrics.io_seconds(arm.engine.save)
    return arm_metrics.efficiency(arm.seconds, seconds, arm.peak_bytes, float(np.mean(retrained.seconds)))
