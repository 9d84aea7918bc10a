"""The trainer of IMCorrect: trains the mapping model, lets it forget, and compares that with retraining."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

from recbole.config import Config
from recbole.data.dataloader import FullSortEvalDataLoader
from recbole.data.dataloader.abstract_dataloader import AbstractDataLoader
from recbole.model.abstract_recommender import GeneralRecommender
from recbole.trainer import TraditionalTrainer

from recbole_llmd.config import plain_config
from recbole_llmd.data.identity import DataIdentity
from recbole_llmd.errors import SettingsError
from recbole_llmd.random_state import isolated_random_state
from recbole_llmd.report.provenance import provenance
from recbole_llmd.result_collector import add_result
from recbole_llmd.trainer.checkpoint_file import save_renamed
from recbole_llmd.unlearning import Unlearner
from recbole_llmd.unlearning.evaluation import report
from recbole_llmd.unlearning.evaluation.evaluate import evaluate_unlearning, refit_to_optimum
from recbole_llmd.unlearning.evaluation.histories import retained_loader
from recbole_llmd.unlearning.evaluation.record import EvaluationRecord, Row
from recbole_llmd.unlearning.evaluation.scenarios import Scenario, scenarios, write_forget_set
from recbole_llmd.unlearning.evaluation.study import inject
from recbole_llmd.unlearning.mapping.correction import interactions


class IMCorrectTrainer(TraditionalTrainer):
    """Fits the mapping model, corrects it for the first scenario, and evaluates all scenarios.

    The corrected model is what ``fit`` and ``evaluate`` give RecBole's metrics of and what is saved, as a checkpoint of
    the mapping model that plain RecBole loads. The histories that the evaluation masks are the retained ones.

    Attributes:
        trained: the model before any request, which all arms begin with; None before ``fit``.
        fitting: how RecBole's own fit compares with it.
        scenarios: what is to be forgotten; None before ``fit``.
    """

    config: Config
    model: GeneralRecommender

    def __init__(self, config: Config, model: GeneralRecommender) -> None:
        super().__init__(config, model)
        self.scenarios: list[Scenario] | None = None
        self.trained: GeneralRecommender = None
        self.fitting: Row = {}
        self.identity: DataIdentity | None = None

    def fit(
        self,
        train_data: AbstractDataLoader,
        valid_data: AbstractDataLoader | None = None,
        verbose: bool = True,
        saved: bool = True,
        show_progress: bool = False,
        callback_fn: Callable[..., Any] | None = None,
    ) -> tuple[float, dict[str, float]]:
        """As RecBole's ``fit``, then correct the model; the validation result is the corrected model's."""
        super().fit(train_data, valid_data, verbose, False, show_progress, callback_fn)
        self.identity = DataIdentity.of(train_data.dataset)
        self.fitting = refit_to_optimum(self.model, self.config, self.model.fit_seconds)
        engine = Unlearner(self.model, self.config, hashes=False)
        self.trained = copy.copy(self.model)
        drawn = self._drawn(train_data, valid_data)
        inject(Unlearner(self.model, self.config, mode="retrain", hashes=False), drawn[0])
        engine = Unlearner(self.model, self.config, hashes=False)
        for request in drawn[0].requests:
            engine.apply(request)
        if valid_data:
            retained = retained_loader(_full_sort(valid_data), *drawn[0].pairs)
            self.best_valid_score, self.best_valid_result = self._valid_epoch(retained, show_progress)
        if saved:
            self._save_checkpoint(0, verbose)
        self.scenarios = drawn
        return self.best_valid_score, self.best_valid_result

    def _drawn(self, train_data: AbstractDataLoader, valid_data: AbstractDataLoader | None) -> list[Scenario]:
        """The scenarios of the run; their forget sets are written."""
        dataset, X = train_data.dataset, self.trained.interaction_matrix
        known = interactions((valid_data or train_data)._sampler.datasets, X.shape)
        drawn = scenarios(self.config, X, dataset, known)
        for scenario in drawn:
            path = Path(self.config["unlearn_dir"]) / f"{self.config['dataset']}-{scenario.label}.forget"
            write_forget_set(path, scenario, dataset)
        return drawn

    def evaluate(
        self,
        eval_data: AbstractDataLoader,
        load_best_model: bool = True,
        model_file: str | None = None,
        show_progress: bool = False,
    ) -> dict[str, float] | None:
        """RecBole's result of the corrected model; after ``fit``, the arms of all scenarios are compared beside it."""
        if self.scenarios is None or not eval_data:
            return self._evaluate(eval_data, load_best_model, model_file, show_progress)
        retained = retained_loader(_full_sort(eval_data), *self.scenarios[0].pairs)
        result = self._evaluate(retained, load_best_model, model_file, show_progress)
        record = self._compared(self.scenarios, eval_data)
        add_result("unlearning", record.as_dict())
        report.print_summary(record)
        report.write(self.config["unlearn_dir"], record)
        return result

    def score(self, model: GeneralRecommender, loader: FullSortEvalDataLoader) -> dict[str, float]:
        """RecBole's metrics of another model, evaluated as this trainer's own."""
        scorer = copy.copy(self)
        scorer.model = model
        return scorer._evaluate(loader, False)

    def _compared(self, scenarios: list[Scenario], eval_data: FullSortEvalDataLoader) -> EvaluationRecord:
        config = self.config
        options = {key: config[key] for key in ("model", "mapping_model")}
        options["dataset"] = eval_data._dataset.dataset_name
        command = " ".join(["recbole-llmd", *(f"--{key}={value}" for key, value in options.items())])
        return evaluate_unlearning(
            self.trained,
            scenarios,
            self.score,
            config=config,
            eval_data=eval_data,
            provenance=provenance(command),
            fits=[self.fitting],
            show_progress=config["show_progress"],
        )

    def _evaluate(self, eval_data: AbstractDataLoader, *arguments: Any) -> Any:
        # RecBole's ADMMSLIM adds noise to its scores: the same for all arms.
        with isolated_random_state(self.config["seed"]):
            return super().evaluate(eval_data, *arguments)

    def _save_checkpoint(self, epoch: int, verbose: bool = True, **kwargs: Any) -> None:
        config = self.config
        self.config = plain_config(config, config["mapping_model"])
        try:
            save_renamed(super()._save_checkpoint, self, epoch, verbose, self.identity, **kwargs)
        finally:
            self.config = config


def _full_sort(loader: AbstractDataLoader) -> FullSortEvalDataLoader:
    if not isinstance(loader, FullSortEvalDataLoader):
        raise SettingsError("eval_args: the arms are compared by rankings of all items. Set mode: full in eval_args.")
    return loader
