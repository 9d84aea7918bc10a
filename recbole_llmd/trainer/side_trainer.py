"""RecBole's Trainer for one side of a run: its training path, its phases, and its best weights."""

from __future__ import annotations

import contextlib
import copy
import logging
from collections.abc import Callable, Iterator, MutableMapping
from typing import Any

import numpy as np
import torch
from recbole.config import Config
from recbole.data.dataloader import AbstractDataLoader, TrainDataLoader
from recbole.data.interaction import Interaction
from recbole.model.abstract_recommender import SequentialRecommender
from recbole.trainer import Trainer
from recbole.utils import init_seed, set_color
from torch import Tensor
from tqdm import tqdm

from recbole_llmd.distill.training_path import TrainingPath
from recbole_llmd.llm.backbone import matmul_precision
from recbole_llmd.trainer.chunked_collector import ChunkedCollector
from recbole_llmd.trainer.objective import EpochFigures, Objective
from recbole_llmd.trainer.phase_run import PhaseRun
from recbole_llmd.trainer.weight_average import WeightAverage


def epoch_seed(seed: int, phase: int, epoch: int) -> int:
    """A seed of its own for each epoch, so that an epoch's random numbers do not depend on what ran before it.

    >>> epoch_seed(2020, phase=0, epoch=1) != epoch_seed(2020, phase=1, epoch=0)
    True
    """
    return int(np.random.SeedSequence([seed, phase, epoch]).generate_state(1)[0])


class SideTrainer(Trainer):
    """Trains one model; RecBole's loop, early stopping and evaluation, on the model's training path.

    :meth:`prepare` comes first, then :meth:`run_phase` for each phase.

    Args:
        config: the side's Config (its ``learning_rate``, ``epochs``, ... are this side's).
        model: the model.
        side: ``CRM`` or ``LLM``, as the log shows it.
        ema_decay: the decay of the averaged weights, which are those that are evaluated and kept.

    Attributes:
        objective: what is minimised; there is none before :meth:`prepare`.
        figures: those of every epoch so far, in order.
        on_epoch_begin: called with the number of every epoch before its first batch, or None.
    """

    logger: Any
    tensorboard: Any
    best_valid_score: float
    best_valid_result: dict[str, float] | None
    objective: Objective

    def __init__(self, config: Config, model: SequentialRecommender, side: str, ema_decay: float = 0.0) -> None:
        super().__init__(config, model)
        self.side = side
        self.average = WeightAverage(model, ema_decay)
        self.eval_collector = ChunkedCollector(config)
        self.tensorboard = _SideWriter(self.tensorboard, side)
        self.logger = _LabelledLogger(self.logger, side)
        self.phase_index, self.label = 0, side
        self._path: TrainingPath | None = None
        self.initial_state = copy.deepcopy(model.state_dict())
        self.best_state: dict[str, Tensor] | None = None
        # Best weights, score and result of the phases before a restarted one.
        self.earlier: tuple[dict[str, Tensor] | None, float, dict[str, float] | None] | None = None
        self.figures: list[dict[str, Any]] = []
        self.on_epoch_begin: Callable[[int], None] | None = None

    def prepare(self, path: TrainingPath) -> None:
        """Train the model on ``path`` from here on."""
        self._path = path
        self.objective = self.own_objective()

    @property
    def path(self) -> TrainingPath:
        """How the model is trained.

        Raises:
            RuntimeError: before :meth:`prepare`.
        """
        if self._path is None:
            raise RuntimeError(f"{self.side}: has no training path yet; call prepare first.")
        return self._path

    def own_objective(self) -> Objective:
        """What the side minimises without a teacher."""
        return Objective(self.path, text_only_items=getattr(self.model, "text_only_items", None))

    def run_phase(self, run: PhaseRun) -> None:
        """Train one phase to its end; afterwards the model has the best weights seen so far in any phase."""
        self._begin(run)
        if run.interruption is not None:
            self.load_progress(run.interruption.progress)
            self._load_middle_of_phase(run.interruption.progress, run.interruption.epoch)
        self.objective, self.on_epoch_begin = run.objective, run.on_epoch_begin
        fit = run.fit
        self.fit(
            fit.train_data,
            fit.valid_data,
            verbose=fit.verbose,
            saved=True,
            show_progress=fit.show_progress,
            callback_fn=fit.callback_fn,
        )
        self._restore_best()

    def _begin(self, run: PhaseRun) -> None:
        """A fresh optimizer and early-stopping count; best weights and score stay."""
        state = self.initial_state if run.restart else self.model.state_dict()
        self.model.load_state_dict({**state, **run.initial_weights})
        if run.restart:
            if self.earlier is None:  # else this phase is being resumed
                self.earlier = self.best_state, self.best_valid_score, self.best_valid_result
            self.best_state, self.best_valid_result = None, None
            self.best_valid_score = -np.inf if self.valid_metric_bigger else np.inf
        self.phase_index, self.label = run.index, run.label
        self.logger.label = run.label
        self.tensorboard.offset = len(self.figures)
        self.start_epoch, self.epochs, self.cur_step = 0, run.epochs, 0
        self.eval_step = min(self.config["eval_step"], max(1, run.epochs))
        self.optimizer = self._build_optimizer()
        self.average.restart()

    def _train_epoch(
        self,
        train_data: TrainDataLoader,
        epoch_idx: int,
        loss_func: Callable[[Interaction], Any] | None = None,
        show_progress: bool = False,
    ) -> float | tuple[float, ...]:
        if self.on_epoch_begin is not None:
            self.on_epoch_begin(epoch_idx)
        seed = epoch_seed(self.config["seed"], self.phase_index, epoch_idx)
        init_seed(seed, self.config["reproducibility"])
        batches = self.path.loader(seed)
        self.objective.figures = EpochFigures()
        bar = tqdm(
            batches,
            total=len(batches),
            ncols=140,
            disable=not show_progress,
            desc=set_color(f"{self.label} {epoch_idx}", "pink"),
        )
        with matmul_precision(getattr(self.model, "input_dtype", torch.float32)):
            return super()._train_epoch(self._shown(bar), epoch_idx, loss_func=loss_func or self.objective)

    def _shown(self, bar: tqdm) -> Iterator[Interaction]:
        for batch in bar:
            yield batch
            self.average.update()
            bar.set_postfix_str(str(self.objective.figures), refresh=False)

    def _generate_train_loss_output(self, epoch_idx: int, s_time: float, e_time: float, losses: Any) -> str:
        figures = self.objective.figures
        self.figures.append(
            {
                "label": self.label,
                "epoch": epoch_idx,
                "seconds": e_time - s_time,
                **figures.as_dict(),
                **figures.weight_quantiles(),
            }
        )
        return (
            set_color(f"epoch {epoch_idx} training", "green")
            + " ["
            + set_color("time", "blue")
            + f": {e_time - s_time:.2f}s, {figures}]"
        )

    def _valid_epoch(
        self, valid_data: AbstractDataLoader, show_progress: bool = False
    ) -> tuple[float, dict[str, float]]:
        with self.average.in_place():
            score, result = super()._valid_epoch(valid_data, show_progress)
        self.figures[-1]["valid"] = score
        return score, result

    def _full_sort_batch_eval(self, batched_data: tuple[Any, ...]) -> tuple[Any, ...]:
        with contextlib.nullcontext() if self._path is None else self._path.evaluation():
            return super()._full_sort_batch_eval(batched_data)

    def _save_checkpoint(self, epoch: int, verbose: bool = True, **kwargs: Any) -> None:
        """RecBole calls this for the best epoch so far: keep its weights."""
        with self.average.in_place():
            self.best_state = copy.deepcopy(self.model.state_dict())

    def _restore_best(self) -> None:
        """Put the best weights seen so far into the model."""
        if self.earlier is not None:
            score = self.earlier[1]
            if score > self.best_valid_score if self.valid_metric_bigger else score < self.best_valid_score:
                self.best_state, self.best_valid_score, self.best_valid_result = self.earlier
            self.earlier = None
        if self.best_state is not None:
            self.model.load_state_dict(self.best_state)

    def progress(self) -> dict[str, Any]:
        """Everything that continuing this side needs, besides what a phase starts afresh."""
        return {
            "state_dict": self.model.state_dict(),
            "best_state": self.best_state,
            "earlier": self.earlier,
            "cur_step": self.cur_step,
            "best_valid_score": self.best_valid_score,
            "best_valid_result": self.best_valid_result,
            "optimizer": self.optimizer.state_dict(),
            "average": self.average.state_dict(),
            "figures": self.figures,
        }

    def load_progress(self, progress: dict[str, Any]) -> None:
        """Go on from what :meth:`progress` gave, before the next phase begins."""
        self.model.load_state_dict(progress["state_dict"])
        self.best_state, self.figures = progress["best_state"], progress["figures"]
        self.earlier = progress["earlier"]
        self.best_valid_score, self.best_valid_result = progress["best_valid_score"], progress["best_valid_result"]

    def _load_middle_of_phase(self, progress: dict[str, Any], epoch: int) -> None:
        """Go on before ``epoch`` of the phase that has just begun."""
        self.start_epoch, self.cur_step = epoch, progress["cur_step"]
        self.optimizer.load_state_dict(progress["optimizer"])
        self.average.load_state_dict(progress["average"])


class _LabelledLogger(logging.LoggerAdapter):  # no parameters at run time before Python 3.11
    """Puts the phase in front of every line."""

    def __init__(self, logger: logging.Logger, label: str) -> None:
        super().__init__(logger, {})
        self.label = label

    def process(self, msg: Any, kwargs: MutableMapping[str, Any]) -> tuple[Any, MutableMapping[str, Any]]:
        return f"{set_color(self.label, 'cyan')}: {msg}", kwargs


class _SideWriter:
    """A tensorboard writer that keeps the curves of the sides apart and the phases of one side in a row."""

    def __init__(self, writer: Any, side: str) -> None:
        self.writer, self.side, self.offset = writer, side, 0

    def add_scalar(self, tag: str, value: float, step: int) -> None:
        self.writer.add_scalar(f"{self.side}/{tag}", value, self.offset + step)

    def add_hparams(self, *args: Any) -> None:
        """Written once for the run, not by each side in each phase."""
