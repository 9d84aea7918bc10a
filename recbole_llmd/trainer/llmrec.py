"""The trainer of LLMRec run alone."""

from __future__ import annotations

from typing import Any

from recbole.config import Config
from recbole.data.dataloader import TrainDataLoader

from recbole_llmd.data.identity import DataIdentity
from recbole_llmd.distill.training_path import llm_path
from recbole_llmd.model.llmrec import LLMRec
from recbole_llmd.trainer.checkpoint_file import adapter_folder, save_renamed
from recbole_llmd.trainer.side_trainer import SideTrainer


class LLMRecTrainer(SideTrainer):
    """All-position training of LLMRec; checkpoints are RecBole's, with the adapter beside them in peft's format."""

    def __init__(self, config: Config, model: LLMRec) -> None:
        super().__init__(config, model, "LLM", config["llm_ema_decay"])
        self.identity: DataIdentity | None = None

    def fit(self, train_data: TrainDataLoader, *args: Any, **kwargs: Any) -> tuple[float, dict[str, float]]:
        """As RecBole's ``Trainer.fit``; afterwards the model has its averaged weights."""
        self.prepare(llm_path(self.model, self.config, train_data, self.config["llm_window_overlap"]))
        self.identity = DataIdentity.of(train_data.dataset)
        self.average.restart()
        result = super().fit(train_data, *args, **kwargs)
        self.average.keep()
        return result

    def _save_checkpoint(self, epoch: int, verbose: bool = True, **kwargs: Any) -> None:
        with self.average.in_place():
            save_renamed(super(SideTrainer, self)._save_checkpoint, self, epoch, verbose, self.identity, **kwargs)
            self.model.save_adapter(adapter_folder(self.saved_model_file))
