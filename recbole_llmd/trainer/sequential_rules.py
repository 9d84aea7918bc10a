"""The trainer of SequentialRules: counts, and chooses a few parameters by the validation result."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import scipy.sparse as sp
from recbole.config import Config
from recbole.data.dataloader import FullSortEvalDataLoader, TrainDataLoader
from recbole.data.dataloader.abstract_dataloader import AbstractDataLoader
from recbole.data.dataset import SequentialDataset
from recbole.trainer import Trainer

from recbole_llmd.data.identity import DataIdentity
from recbole_llmd.model.sequential_rules import RuleParameters, SequentialRules, transition_counts
from recbole_llmd.trainer.checkpoint_file import save_renamed

NAMES = tuple(field.name for field in dataclasses.fields(RuleParameters))


class SequentialRulesTrainer(Trainer):
    """Chooses each parameter among the values of its setting, until no single one is better otherwise.

    Attributes:
        tried: the parameters tried and the validation score of each, in order.
    """

    def __init__(self, config: Config, model: SequentialRules) -> None:
        super().__init__(config, model)
        self.tried: dict[RuleParameters, float] = {}
        self.identity: DataIdentity | None = None
        self._counts: dict[float, sp.csr_matrix] = {}

    def fit(
        self,
        train_data: TrainDataLoader,
        valid_data: AbstractDataLoader | None = None,
        verbose: bool = True,
        saved: bool = True,
        show_progress: bool = False,
        callback_fn: Callable[[int, float], None] | None = None,
    ) -> tuple[float, dict[str, float] | None]:
        """As RecBole's ``fit``; an epoch, for ``callback_fn``, is a set of parameters tried."""
        self.eval_collector.data_collect(train_data)
        self.identity = DataIdentity.of(train_data.dataset)
        chosen = RuleParameters(**{name: self._values(name)[0] for name in NAMES})
        if valid_data:
            chosen = self._chosen(chosen, train_data.dataset, self._some_users(valid_data), callback_fn)
        self._set(chosen, train_data.dataset)
        if verbose:
            self.logger.info(f"{len(self.tried)} sets of parameters tried; the best by validation: {chosen}")
        if valid_data:
            self.best_valid_score, self.best_valid_result = self._valid_epoch(valid_data, show_progress)
        if saved:
            self._save_checkpoint(0, verbose)
        return self.best_valid_score, self.best_valid_result

    def _chosen(
        self,
        first: RuleParameters,
        dataset: SequentialDataset,
        valid_data: AbstractDataLoader,
        callback_fn: Callable[[int, float], None] | None,
    ) -> RuleParameters:
        """The best of the parameters that are reached from the ``first`` by changing one at a time."""

        def score(parameters: RuleParameters) -> float:
            if parameters not in self.tried:
                self._set(parameters, dataset)
                self.tried[parameters], _ = self._valid_epoch(valid_data)
                if callback_fn:
                    callback_fn(len(self.tried) - 1, self.tried[parameters])
            return self.tried[parameters] if self.valid_metric_bigger else -self.tried[parameters]

        best, before = first, None
        while best != before:
            before = best
            for name in NAMES:
                others = [dataclasses.replace(best, **{name: value}) for value in self._values(name)]
                best = max([best, *others], key=score)  # of equal ones the first
        return best

    def _values(self, name: str) -> list[float]:
        if name == "text" and self.model.texts is None:
            return [0.0]
        values = self.config[f"rules_{name}"]
        return list(values) if isinstance(values, (list, tuple)) else [values]

    def _set(self, parameters: RuleParameters, dataset: SequentialDataset) -> None:
        decay = parameters.distance_decay
        if decay not in self._counts:
            fields = dataset.item_id_list_field, dataset.item_list_length_field, dataset.iid_field
            items, lengths, targets = (dataset.inter_feat[field].numpy() for field in fields)
            self._counts[decay] = transition_counts(items, lengths, targets, decay, dataset.item_num)
        self.model.set_rules(parameters, self._counts[decay])

    def _some_users(self, valid_data: AbstractDataLoader) -> AbstractDataLoader:
        """At most ``rules_validation_users`` of the validation users, the same whenever the seed is."""
        most, users = self.config["rules_validation_users"], valid_data.sample_size
        if not isinstance(valid_data, FullSortEvalDataLoader) or users <= most:
            return valid_data
        return _SomeUsers(valid_data, np.random.default_rng(self.config["seed"]).permutation(users)[:most])

    def _save_checkpoint(self, epoch: int, verbose: bool = True, **kwargs: Any) -> None:
        save_renamed(super()._save_checkpoint, self, epoch, verbose, self.identity, **kwargs)


class _SomeUsers(FullSortEvalDataLoader):
    """RecBole's full-sort loader of some of its users."""

    def __init__(self, loader: FullSortEvalDataLoader, users: np.ndarray[Any, np.dtype[np.int64]]) -> None:
        self.__dict__.update(loader.__dict__)  # what it masks, too
        self.users = users

    def __len__(self) -> int:
        return -(-len(self.users) // self.step)

    def __iter__(self) -> Iterator[Any]:
        for first in range(0, len(self.users), self.step):
            yield self.collate_fn(self.users[first : first + self.step])
