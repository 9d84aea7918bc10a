"""The trainer of IMCorrect: trains the mapping model, lets it forget, and compares that with retraining."""

import json
from pathlib import Path

from recbole.data.dataloader import FullSortEvalDataLoader
from recbole.trainer import TraditionalTrainer

from recbole_llmd.config import plain_config
from recbole_llmd.errors import SettingsError
from recbole_llmd.random_state import isolated_random_state
from recbole_llmd.report.provenance import provenance, without_paths
from recbole_llmd.result_collector import add_result
from recbole_llmd.trainer.llmrec import save_renamed
from recbole_llmd.unlearning import Unlearner
from recbole_llmd.unlearning.evaluation import metrics, report
from recbole_llmd.unlearning.evaluation.arm_metrics import retained_loader
from recbole_llmd.unlearning.evaluation.arms import clone
from recbole_llmd.unlearning.evaluation.scenarios import scenarios, write_forget_set
from recbole_llmd.unlearning.evaluation.study import Study, drift, inject
from recbole_llmd.unlearning.mapping.correction import interactions


class IMCorrectTrainer(TraditionalTrainer):
    """Fits the mapping model, corrects it for the first scenario, and evaluates all scenarios.

    The corrected model is what ``fit`` and ``evaluate`` give RecBole's metrics of and what is saved, as a checkpoint of
    the mapping model that plain RecBole loads. The histories that the evaluation masks are the retained ones.
    """

    def __init__(self, config, model):
        super().__init__(config, model)
        self.scenarios = self.trained = self.fitting = None

    def fit(self, train_data, valid_data=None, verbose=True, saved=True, show_progress=False, callback_fn=None):
        """As RecBole's ``fit``, then correct the model; the validation result is the corrected model's."""
        super().fit(train_data, valid_data, verbose, False, show_progress, callback_fn)
        self._fit_to_the_end()
        dataset, X = train_data.dataset, self.trained.interaction_matrix
        everything = interactions((valid_data or train_data)._sampler.datasets, X.shape)
        drawn = list(scenarios(self.config, X, dataset, everything))
        for scenario in drawn:
            path = Path(self.config["unlearn_dir"]) / f"{self.config['dataset']}-{scenario.label}.forget"
            write_forget_set(path, scenario, dataset)
        inject(self.model, self.config, drawn[0])
        engine = Unlearner(self.model, self.config, hashes=False)
        for users, items in drawn[0].requests:
            engine.forget(users, items, ids="internal")
        if valid_data:
            retained = retained_loader(_full_sort(valid_data), *drawn[0].pairs)
            self.best_valid_score, self.best_valid_result = self._valid_epoch(retained, show_progress)
        if saved:
            self._save_checkpoint(0, verbose)
        self.scenarios = drawn
        return self.best_valid_score, self.best_valid_result

    def _fit_to_the_end(self):
        """Take the choices out of the model that RecBole leaves open (ties, iterations): the start of every arm."""
        engine = Unlearner(self.model, self.config, hashes=False)
        theirs = engine.B
        receipt = engine.refit()
        self.trained = clone(self.model, engine.mapping)
        self.fitting = {
            "model": engine.name,
            "dataset": self.config["dataset"],
            "recbole_seconds": self.model.fit_seconds,
            "seconds": receipt.seconds,
            "B_frobenius": metrics.relative_frobenius(theirs, engine.B),
            "columns": metrics.differing_columns(theirs, engine.B),
        }

    def evaluate(self, eval_data, load_best_model=True, model_file=None, show_progress=False):
        """RecBole's result of the corrected model; after ``fit``, the arms of all scenarios are compared beside it."""
        if self.scenarios is None or not eval_data:
            return self._evaluate(eval_data, load_best_model, model_file, show_progress)
        first = retained_loader(_full_sort(eval_data), *self.scenarios[0].pairs)
        result = self._evaluate(first, load_best_model, model_file, show_progress)
        corrected = self.model
        try:
            record = self._compare(eval_data)
        finally:
            self.model = corrected
        add_result("unlearning", record)
        report.print_summary(record)
        report.write(self.config["unlearn_dir"], record)
        return result

    def _compare(self, eval_data):
        study = Study(self.config, self.trained, eval_data, self._metrics_of)
        rows = [row for scenario in self.scenarios for row in study.run(scenario)]
        drifts = []
        if self.config["unlearn_drift_requests"]:
            drifts = drift(self.config, self.trained)
        dataset, name = eval_data._dataset, self.fitting["model"]
        return {
            **provenance(f"recbole-llmd --model=IMCorrect --mapping_model={name} --dataset={dataset.dataset_name}"),
            "config": json.loads(json.dumps(without_paths(self.config.final_config_dict), default=str)),
            "datasets": {
                "users": dataset.user_num - 1,
                "items": dataset.item_num - 1,
                "interactions": int(self.trained.interaction_matrix.nnz),
            },
            "fits": [self.fitting],
            "rows": rows,
            "drift": drifts,
        }

    def _evaluate(self, *arguments):
        with isolated_random_state(
            self.config["seed"]
        ):  # RecBole's ADMMSLIM adds noise to its scores: the same for all arms
            return super().evaluate(*arguments)

    def _metrics_of(self, model, loader):
        self.model = model
        return self._evaluate(loader, False)

    def _save_checkpoint(self, epoch, verbose=True, **kwargs):
        config = self.config
        self.config = plain_config(config, config["mapping_model"])
        try:
            save_renamed(super()._save_checkpoint, self, epoch, verbose, **kwargs)
        finally:
            self.config = config


def _full_sort(loader):
    if not isinstance(loader, FullSortEvalDataLoader):
        raise SettingsError("eval_args: IMCorrect compares rankings of all items. Set mode: full in eval_args.")
    return loader
