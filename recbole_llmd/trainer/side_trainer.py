"""RecBole's Trainer for one side of a run: its training path, its phases, and its best weights."""

from __future__ import annotations

import contextlib
import copy
import logging
from collections.abc import Callable, Iterator, Mapping, MutableMapping
from typing import Any, NamedTuple

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
from recbole_llmd.trainer.objective import Objective
from recbole_llmd.trainer.phase_run import PhaseRun
from recbole_llmd.trainer.weight_average import WeightAverage


def epoch_seed(seed: int, phase: int, epoch: int) -> int:
    """A seed of its own for each epoch, so that an epoch's random numbers do not depend on what ran before it.

    >>> epoch_seed(2020, phase=0, epoch=1) != epoch_seed(2020, phase=1, epoch=0)
    True
    """
    return int(np.random.SeedSequence([seed, phase, epoch]).generate_state(1)[0])


class Best(NamedTuple):
    """The best weights of one phase or several, by validation.

    >>> Best(0.25, {"ndcg@10": 0.25}, {}).score
    0.25
    """

    score: float
    result: dict[str, float] | None
    state: dict[str, Tensor] | None


class SideTrainer(Trainer):
    """Trains one model; RecBole's loop, early stopping and evaluation, on the model's training path.

    :meth:`prepare` comes first, then :meth:`run_phase` for each phase, then :meth:`finish`. ``best_valid_score`` and
    ``best_valid_result`` are those of the last phase, and from :meth:`finish` on those of the weights in the model.

    Args:
        config: the side's Config (its ``learning_rate``, ``epochs``, ... are this side's).
        model: the model.
        side: ``CRM`` or ``LLM``, as the log shows it.
        ema_decay: the decay of the averaged weights, which are those that are evaluated and kept.

    Attributes:
        objective: what is minimised; there is none before :meth:`prepare`.
        figures: those of every epoch so far, in order.
        phases: what each phase so far came to: its label, epochs, training seconds, best validation and its epoch.
        best: the best of all phases: what teaches, and what a phase without restart goes on from.
        best_that_counts: the best of the phases that count for what the side ends with.
        matmul_dtype: what float32 products of training, and of the teacher for it, are rounded to; float32 rounds
            nothing.
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
        self.best: Best | None = None
        self.best_that_counts: Best | None = None
        self.figures: list[dict[str, Any]] = []
        self.phases: list[dict[str, Any]] = []
        self.on_epoch_begin: Callable[[int], None] | None = None
        self.matmul_dtype: torch.dtype = getattr(model, "input_dtype", torch.float32)

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

    def start_from(self, weights: Mapping[str, Tensor]) -> None:
        """Replace entries of the initial ``state_dict``, from which the first phase and every restarted one begin."""
        self.initial_state = {**self.initial_state, **weights}
        self.model.load_state_dict(self.initial_state)

    def own_objective(self, text_only_items: Tensor | None = None) -> Objective:
        """What the side minimises without a teacher.

        Args:
            text_only_items: items that its cross-entropy leaves out, bool, ``[n_items]``; the model's own if None.
        """
        if text_only_items is None:
            text_only_items = getattr(self.model, "text_only_items", None)
        return Objective(self.path, text_only_items=text_only_items)

    def run_phase(self, run: PhaseRun) -> None:
        """Train one phase to its end; afterwards the model has the best weights so far of any phase."""
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
        self._end(run)

    def _begin(self, run: PhaseRun) -> None:
        """A fresh optimizer and early-stopping count; a phase stops early, and has its best weights, by itself."""
        state = self.initial_state if run.restart else self.model.state_dict()
        self.model.load_state_dict({**state, **run.initial_weights})
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
        seed = self._seed_of(epoch_idx)
        init_seed(seed, self.config["reproducibility"])
        batches = self.path.loader(seed)
        bar = tqdm(
            batches,
            total=len(batches),
            ncols=140,
            disable=not show_progress,
            desc=set_color(f"{self.label} {epoch_idx}", "pink"),
        )
        with matmul_precision(self.matmul_dtype):
            self.objective.begin_epoch(epoch_idx, self._seed_of)
            return super()._train_epoch(self._shown(bar), epoch_idx, loss_func=loss_func or self.objective)

    def _seed_of(self, epoch: int) -> int:
        """The seed of an epoch of this phase."""
        return epoch_seed(self.config["seed"], self.phase_index, epoch)

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

    def _end(self, run: PhaseRun) -> None:
        """Put the best weights of all phases into the model, and write down what this phase came to."""
        of_phase = Best(self.best_valid_score, self.best_valid_result, self.best_state)
        self.best = self._better(self.best, of_phase)
        self.best_that_counts = self._better(None if run.supersedes else self.best_that_counts, of_phase)
        epochs = [figures for figures in self.figures if figures["label"] == run.label]
        scores = [figures.get("valid") for figures in epochs]
        self.phases.append(
            {
                "label": run.label,
                "side": self.side,
                "epochs": len(epochs),
                "seconds": sum(figures["seconds"] for figures in epochs),
                "best_epoch": scores.index(of_phase.score) if of_phase.score in scores else len(epochs) - 1,
                "best_valid_score": of_phase.score if of_phase.result is not None else None,
                "best_valid_result": of_phase.result,
            }
        )
        self._load(self.best)

    def _better(self, earlier: Best | None, later: Best) -> Best:
        """The one with the better score; of equal ones, as where there is no validation, the later one."""
        if earlier is None:
            return later
        better = earlier.score > later.score if self.valid_metric_bigger else earlier.score < later.score
        return earlier if better else later

    def _load(self, best: Best) -> None:
        if best.state is not None:
            self.model.load_state_dict(best.state)

    def finish(self) -> None:
        """After the last phase: put the best weights of the phases that count into the model."""
        if self.best_that_counts is not None:
            self.best_valid_score, self.best_valid_result, self.best_state = self.best_that_counts
            self._load(self.best_that_counts)

    def progress(self) -> dict[str, Any]:
        """Everything that continuing this side needs, besides what a phase starts afresh."""
        return {
            "state_dict": self.model.state_dict(),
            "best_state": self.best_state,
            "best": self.best,
            "best_that_counts": self.best_that_counts,
            "phases": self.phases,
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
        self.best, self.best_that_counts = progress["best"], progress["best_that_counts"]
        self.phases = list(progress["phases"])
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
