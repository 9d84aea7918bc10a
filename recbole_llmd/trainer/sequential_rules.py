"""The trainer of SequentialRules: counts, and fits a few weights on validation samples."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from recbole.config import Config
from recbole.data.dataloader import TrainDataLoader
from recbole.data.dataloader.abstract_dataloader import AbstractDataLoader
from recbole.trainer import Trainer

from recbole_llmd.data.identity import DataIdentity
from recbole_llmd.data.sequences import TrainingSequences
from recbole_llmd.data.transitions import Samples
from recbole_llmd.distill.evidence import LINEAR_UP_TO, USUAL, Evidence, PooledEvidence, fit_weights, some_of
from recbole_llmd.model.sequential_rules import SequentialRules
from recbole_llmd.trainer.checkpoint_file import save_renamed


class SequentialRulesTrainer(Trainer):
    """Makes the evidence of the training samples; its weights are the likeliest after validation samples."""

    def __init__(self, config: Config, model: SequentialRules) -> None:
        super().__init__(config, model)
        self.identity: DataIdentity | None = None

    def fit(
        self,
        train_data: TrainDataLoader,
        valid_data: AbstractDataLoader | None = None,
        verbose: bool = True,
        saved: bool = True,
        show_progress: bool = False,
        callback_fn: Callable[[int, float], None] | None = None,
    ) -> tuple[float, dict[str, float] | None]:
        """As RecBole's ``fit``; the whole of it is one epoch."""
        self.eval_collector.data_collect(train_data)
        self.identity = DataIdentity.of(train_data.dataset)
        model, weights = self.model, USUAL
        linear = self.config["rules_linear"] and model.n_items <= LINEAR_UP_TO
        if self.config["rules_linear"] and not linear and verbose:
            self.logger.info(f"No linear transition model: it is dense, and {model.n_items} items are too many for it.")
        samples = Samples.of(train_data.dataset)
        model.sequences = TrainingSequences.of(samples, train_data.dataset.user_num)
        if model.sequences is not None:  # in their order, sums are rounded as when they are counted again
            samples = model.sequences.samples()
        evidence = Evidence.of(samples, model.popularity, model.texts, linear)
        if valid_data:
            valid, most = Samples.of(valid_data.dataset), self.config["rules_validation_users"]
            model.validation = some_of(valid, most, self.config["seed"])
            weights = fit_weights(evidence, model.validation)
        model.evidence = PooledEvidence(evidence, weights)
        if verbose:
            self.logger.info(f"Fitted on validation samples: {weights}")
        if valid_data:
            self.best_valid_score, self.best_valid_result = self._valid_epoch(valid_data, show_progress)
            if callback_fn:
                callback_fn(0, self.best_valid_score)
        if saved:
            self._save_checkpoint(0, verbose)
        return self.best_valid_score, self.best_valid_result

    def _save_checkpoint(self, epoch: int, verbose: bool = True, **kwargs: Any) -> None:
        save_renamed(super()._save_checkpoint, self, epoch, verbose, self.identity, **kwargs)
