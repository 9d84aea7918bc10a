"""RecBole's Trainer for one side of a run: all-position batches, phases, and the side's best weights."""

import contextlib
import copy
import logging

import numpy as np
import torch
from recbole.data.interaction import Interaction
from recbole.evaluator import Collector
from recbole.trainer import Trainer
from recbole.utils import init_seed, set_color
from tqdm import tqdm

from recbole_llmd.data.windows import WindowLoader, build_windows
from recbole_llmd.llm.backbone import matmul_precision
from recbole_llmd.trainer.objective import EpochFigures, Objective
from recbole_llmd.trainer.weight_average import WeightAverage

ROWS_TOGETHER = 256  # histories scored, and rankings collected, in one pass when a side is evaluated


def epoch_seed(seed, phase, epoch):
    """A seed of its own for each epoch, so that an epoch's draws do not depend on what ran before it."""
    return int(np.random.SeedSequence([seed, phase, epoch]).generate_state(1)[0])


class SideTrainer(Trainer):
    """Trains one model; RecBole's loop, early stopping and evaluation, over windows where the model allows it.

    Args:
        config: the side's Config (its ``learning_rate``, ``epochs``, ... are this side's).
        model: the model.
        side (str): ``CRM`` or ``LLM``, as the log shows it.
        overlap (float): the windows' overlap.
        ema_decay (float): the decay of the averaged weights, which are those that are evaluated and kept.
    """

    def __init__(self, config, model, side, overlap, ema_decay=0.0):
        super().__init__(config, model)
        self.side, self.overlap = side, overlap
        self.average = WeightAverage(model, ema_decay)
        self.eval_collector = PartsCollector(config)
        self.tensorboard = _SideWriter(self.tensorboard, side)
        self.logger = _LabelledLogger(self.logger, {"label": side})
        self.phase_index, self.label = 0, side
        self.scorer = self.window_loader = self.objective = None
        self.initial_state = copy.deepcopy(model.state_dict())
        self.best_state = None
        self.earlier = None  # best weights, score and result of the phases before a restarted one
        self.figures = []
        self.before_epoch = lambda epoch: None

    def prepare(self, scorer, train_data):
        """Take the scorer of the model and build the side's batches."""
        self.scorer = scorer
        if scorer.windows:
            windows = build_windows(train_data.dataset, self.overlap)
            self.window_loader = WindowLoader(windows, self.config, self.config["train_batch_size"])
        self.objective = self.own_objective()

    def own_objective(self):
        """What the side minimises without a teacher."""
        return Objective(self.scorer, left_out=getattr(self.model, "text_only", None))

    def begin(self, index, label, epochs, restart=False, start=None):
        """Start a phase: a fresh optimizer and early-stopping count; best weights and score stay.

        With ``restart`` the training starts from the initial weights, those in ``start`` replaced: a student that has
        already fitted the samples too closely learns little from a teacher. Its early stopping looks at this phase
        alone.
        """
        if restart:
            self.model.load_state_dict({**self.initial_state, **(start or {})})
            if self.earlier is None:  # else this phase is being resumed
                self.earlier = self.best_state, self.best_valid_score, self.best_valid_result
            self.best_state, self.best_valid_result = None, None
            self.best_valid_score = -np.inf if self.valid_metric_bigger else np.inf
        self.phase_index, self.label = index, label
        self.logger.extra["label"] = label
        self.tensorboard.offset = len(self.figures)
        self.start_epoch, self.epochs, self.cur_step = 0, epochs, 0
        self.eval_step = min(self.config["eval_step"], max(1, epochs))
        self.optimizer = self._build_optimizer()
        self.average.restart()

    def _train_epoch(self, train_data, epoch_idx, loss_func=None, show_progress=False):
        self.before_epoch(epoch_idx)
        seed = epoch_seed(self.config["seed"], self.phase_index, epoch_idx)
        init_seed(seed, self.config["reproducibility"])
        if self.scorer.windows:
            train_data = self.window_loader
            train_data.seed(seed)
        else:
            train_data.generator.manual_seed(seed)
        self.objective.figures = EpochFigures()
        bar = tqdm(
            train_data,
            total=len(train_data),
            ncols=140,
            disable=not show_progress,
            desc=set_color(f"{self.label} {epoch_idx}", "pink"),
        )
        with matmul_precision(getattr(self.model, "input_dtype", torch.float32)):
            return super()._train_epoch(self._shown(bar), epoch_idx, loss_func=loss_func or self.objective)

    def _shown(self, bar):
        for batch in bar:
            yield batch
            self.average.update()
            bar.set_postfix_str(str(self.objective.figures), refresh=False)

    def _generate_train_loss_output(self, epoch_idx, s_time, e_time, losses):
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

    def _valid_epoch(self, valid_data, show_progress=False):
        with self.average.in_place():
            score, result = super()._valid_epoch(valid_data, show_progress)
        self.figures[-1]["valid"] = score
        return score, result

    def _full_sort_batch_eval(self, batched_data):
        with scored_by_length(self.model) if self.scorer and self.scorer.windows else contextlib.nullcontext():
            return super()._full_sort_batch_eval(batched_data)

    def _save_checkpoint(self, epoch, verbose=True, **kwargs):
        """RecBole calls this for the best epoch so far: keep its weights."""
        with self.average.in_place():
            self.best_state = copy.deepcopy(self.model.state_dict())

    def restore_best(self):
        """Put the best weights seen so far into the model."""
        if self.earlier is not None:
            score = self.earlier[1]
            if score > self.best_valid_score if self.valid_metric_bigger else score < self.best_valid_score:
                self.best_state, self.best_valid_score, self.best_valid_result = self.earlier
            self.earlier = None
        if self.best_state is not None:
            self.model.load_state_dict(self.best_state)

    def progress(self):
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

    def load_progress(self, progress, epoch=None):
        """Take up what :meth:`progress` gave; with ``epoch``, also the middle of a phase begun by :meth:`begin`."""
        self.model.load_state_dict(progress["state_dict"])
        self.best_state, self.figures = progress["best_state"], progress["figures"]
        self.earlier = progress["earlier"]
        self.best_valid_score, self.best_valid_result = progress["best_valid_score"], progress["best_valid_result"]
        if epoch is not None:
            self.start_epoch, self.cur_step = epoch, progress["cur_step"]
            self.optimizer.load_state_dict(progress["optimizer"])
            self.average.load_state_dict(progress["average"])


class PartsCollector(Collector):
    """RecBole's collector, over parts of a batch of users.

    It makes tensors of the scores' shape ``[users, n_items]`` that take four times the scores' memory.
    """

    def eval_batch_collect(self, scores_tensor, interaction, positive_u, positive_i):
        if scores_tensor.dim() != 2 or len(interaction) != len(scores_tensor):  # sampled evaluation
            return super().eval_batch_collect(scores_tensor, interaction, positive_u, positive_i)
        for start in range(0, len(scores_tensor), ROWS_TOGETHER):
            part = slice(start, start + ROWS_TOGETHER)
            inside = (positive_u >= start) & (positive_u < start + ROWS_TOGETHER)
            super().eval_batch_collect(
                scores_tensor[part], interaction[part], positive_u[inside] - start, positive_i[inside]
            )


@contextlib.contextmanager
def scored_by_length(model):
    """Inside, a causal ``model`` scores histories of like length together, without the padding beyond the longest.

    RecBole pads every history to ``MAX_ITEM_LIST_LENGTH``; on sparse data most of a validation pass is padding.
    """
    plain = model.full_sort_predict

    def by_length(interaction):
        length, scores = interaction[model.ITEM_SEQ_LEN], None
        for rows in length.argsort().split(ROWS_TOGETHER):
            part = interaction[rows]
            part.update(Interaction({model.ITEM_SEQ: part[model.ITEM_SEQ][:, : int(length[rows].max())]}))
            found = plain(part)
            if scores is None:
                scores = found.new_empty(len(length), *found.shape[1:])
            scores[rows] = found
        return scores

    model.full_sort_predict = by_length
    try:
        yield
    finally:
        del model.full_sort_predict


class _LabelledLogger(logging.LoggerAdapter):
    """Puts the phase in front of every line."""

    def process(self, msg, kwargs):
        return f"{set_color(self.extra['label'], 'cyan')}: {msg}", kwargs


class _SideWriter:
    """A tensorboard writer that keeps the curves of the sides apart and the phases of one side in a row."""

    def __init__(self, writer, side):
        self.writer, self.side, self.offset = writer, side, 0

    def add_scalar(self, tag, value, step):
        self.writer.add_scalar(f"{self.side}/{tag}", value, self.offset + step)

    def add_hparams(self, *args):
        """Written once for the run, not by each side in each phase."""
