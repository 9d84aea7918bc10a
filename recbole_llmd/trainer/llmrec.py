"""The trainer of LLMRec run alone."""

from recbole_llmd.atomic_write import atomic_write
from recbole_llmd.data.windows import add_row_numbers
from recbole_llmd.distill.scorers import LLMScorer
from recbole_llmd.trainer.side_trainer import SideTrainer


class LLMRecTrainer(SideTrainer):
    """All-position training of LLMRec; checkpoints are RecBole's, with the adapter beside them in peft's format."""

    def __init__(self, config, model):
        super().__init__(config, model, "LLM", config["llm_window_overlap"], config["llm_ema_decay"])

    def fit(self, train_data, *args, **kwargs):
        add_row_numbers(train_data.dataset)
        self.prepare(LLMScorer(self.model), train_data)
        self.average.restart()
        result = super().fit(train_data, *args, **kwargs)
        self.average.keep()
        return result

    def _save_checkpoint(self, epoch, verbose=True, **kwargs):
        with self.average.in_place():
            save_renamed(super(SideTrainer, self)._save_checkpoint, self, epoch, verbose, **kwargs)
            self.model.save_adapter(adapter_folder(self.saved_model_file))


def adapter_folder(checkpoint):
    """Where the adapter of the LLM in ``checkpoint`` is written: beside it."""
    return checkpoint.removesuffix(".pth") + "-adapter"


def save_renamed(save, trainer, epoch, verbose=True, **kwargs):
    """RecBole's ``_save_checkpoint`` under a temporary name, renamed when it is whole."""
    path = kwargs.pop("saved_model_file", trainer.saved_model_file)
    with atomic_write(path) as temporary:
        save(epoch, verbose=False, saved_model_file=temporary, **kwargs)
    if verbose:
        trainer.logger.info(f"Saving current: {path}")
