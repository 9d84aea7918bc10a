"""The trainer of LLMD4Rec: warm-up of both sides, then rounds in which each teaches the other."""

from __future__ import annotations

import glob
import hashlib
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from recbole.config import Config
from recbole.data.dataloader import AbstractDataLoader, TrainDataLoader
from recbole.trainer import Trainer
from recbole.utils import set_color
from torch import Tensor

from recbole_llmd import config as configs
from recbole_llmd.atomic_write import atomic_write
from recbole_llmd.data.identity import DataIdentity
from recbole_llmd.distill.teacher_cache import EXACT_UP_TO
from recbole_llmd.distill.text_initialisation import initial_embeddings_from_text
from recbole_llmd.distill.training_path import crm_path, llm_path
from recbole_llmd.llm.backbone import matmul_precision
from recbole_llmd.model.llmd4rec import LLMD4Rec
from recbole_llmd.result_collector import add_result
from recbole_llmd.trainer.checkpoint_file import adapter_folder, save_renamed
from recbole_llmd.trainer.chunked_collector import ChunkedCollector
from recbole_llmd.trainer.objective import Objective
from recbole_llmd.trainer.phase_run import FitArguments, Interruption, PhaseRun
from recbole_llmd.trainer.side_trainer import SideTrainer
from recbole_llmd.trainer.teaching import Teaching

OTHER = {"CRM": "LLM", "LLM": "CRM"}
# Keys that change where a run writes and what it shows, not what it computes: a run may be resumed with others.
NOT_IN_FINGERPRINT = {
    "suppression_list",  # its state is
    "resume",
    "show_progress",
    "state",
    "checkpoint_dir",
    "data_path",
    "log_wandb",
    "wandb_project",
    "llm_cache_dir",
    "gpu_id",
    "use_gpu",
    "device",
    "config_files",
}


@dataclass(frozen=True)
class Phase:
    """One side's training against the frozen other one (its teacher) or alone.

    Attributes:
        round: 0 is the warm-up.
        student: the side that is trained, ``CRM`` or ``LLM``.
        epochs: at most.
        taught: whether the other side teaches.

    >>> Phase(round=1, student="CRM", epochs=3, taught=True).label
    'round 1, CRM phase (LLM teaches)'
    """

    round: int
    student: str
    epochs: int
    taught: bool

    @property
    def teacher(self) -> str:
        """The other side."""
        return OTHER[self.student]

    @property
    def label(self) -> str:
        """What the log and the results call the phase."""
        when = f"round {self.round}" if self.round else "warm-up"
        how = f" ({self.teacher} teaches)" if self.taught else ""
        return f"{when}, {self.student} phase{how}"


def plan(config: Config | Mapping[str, Any]) -> list[Phase]:
    """The phases of a run. All directions have the same phases with the same epochs; they differ in who is taught."""
    direction = config["distill_direction"]
    epochs = {"CRM": config["epochs"], "LLM": config["llm_epochs"]}
    warm_up = {"CRM": config["crm_warmup_epochs"], "LLM": config["llm_warmup_epochs"]}
    taught = {"CRM": direction in ("mutual", "llm_to_crm"), "LLM": direction in ("mutual", "crm_to_llm")}
    # An LLM that reads the CRM's item vectors comes after the CRM.
    first = "LLM" if config["llm_item_vectors"] == "own" else "CRM"
    phases = [Phase(0, side, warm_up[side], False) for side in (first, OTHER[first])]
    first = config["distill_first"]
    for number in range(1, config["distill_rounds"] + 1):
        phases += [Phase(number, side, epochs[side], taught[side]) for side in (first, OTHER[first])]
    return [phase for phase in phases if phase.epochs > 0]


def phases_that_count(phases: Sequence[Phase], restart: bool) -> list[Phase]:
    """The phases among which a run chooses, by validation, the weights that each side ends with.

    Of a side that is taught these are the phases in which it is: what is reported of it is never an untaught model. Of
    one that nobody teaches they are its phases in the rounds where each is a training of its own (``restart``), as
    many as a taught side has, and all its phases where each goes on from the one before.

    >>> phases = [Phase(0, "LLM", 9, False), Phase(1, "LLM", 9, True), Phase(2, "LLM", 9, True)]
    >>> [phase.round for phase in phases_that_count(phases, restart=True)]
    [1, 2]
    """
    chosen: list[Phase] = []
    for side in OTHER:
        own = [phase for phase in phases if phase.student == side]
        in_rounds = [phase for phase in own if phase.round > 0]
        chosen += [phase for phase in own if phase.taught] or (in_rounds if restart else own) or own
    return chosen


@dataclass(frozen=True)
class Progress:
    """A run at the moment before ``epoch`` of phase ``phase`` (None: before that phase begins).

    >>> Progress(1, None, {"CRM": {}, "LLM": {"cur_step": 2}}).write("run.pth")
    >>> Progress.read("run.pth", torch.device("cpu"))
    Progress(phase=1, epoch=None, sides={'CRM': {}, 'LLM': {'cur_step': 2}})
    """

    phase: int
    epoch: int | None
    sides: dict[str, dict[str, Any]]

    @classmethod
    def read(cls, file: str | os.PathLike[str], device: torch.device) -> Progress:
        """Read what :meth:`write` wrote."""
        # Written by this package where the user told it to; it holds NumPy scalars beside the tensors.
        content = torch.load(file, map_location=device, weights_only=False)
        return cls(content["phase"], content["epoch"], {name: content[name] for name in OTHER})

    def write(self, file: str | os.PathLike[str], **facts: Any) -> None:
        """Write it, and ``facts`` beside it."""
        with atomic_write(file) as temporary:
            torch.save({"phase": self.phase, "epoch": self.epoch, **self.sides, **facts}, temporary)


class LLMD4RecTrainer(Trainer):
    """Alternates the phases of :func:`plan`; each phase is one RecBole ``fit`` of one side.

    The weights of a side's best validation epoch so far teach the other side. Those of the best epoch of
    :func:`phases_that_count` are what it ends with; the CRM's are what the run returns, evaluates and saves. A phase
    starts from its side's initial weights, or, without ``distill_restart``, from its best ones. The item vectors of the
    CRM that an LLM may read are part of its weights.

    Attributes:
        sides: the trainers of ``CRM`` and ``LLM``.
        after_warm_up: called once each when the warm-up has been trained and round 1 is about to begin.
        on_epoch_begin: called with the side and the number of every epoch before its first batch.
    """

    def __init__(self, config: Config, model: LLMD4Rec) -> None:
        super().__init__(config, model)
        self.eval_collector = ChunkedCollector(config)
        llm_config = configs.llm_side_config(config)
        self.sides = {
            "CRM": SideTrainer(config, model.crm, "CRM", config["crm_ema_decay"]),
            "LLM": SideTrainer(llm_config, model.llm, "LLM", config["llm_ema_decay"]),
        }
        self.resume_file = os.path.join(
            self.checkpoint_dir, f"{config['model']}-{config['dataset']}-{fingerprint(config)}.resume.pth"
        )
        self.after_warm_up: list[Callable[[], None]] = []
        self.on_epoch_begin: list[Callable[[SideTrainer, int], None]] = []
        self._warm_start: Progress | None = None
        self._teaching: Teaching | None = None

    def prepare(
        self, train_data: TrainDataLoader, valid_data: AbstractDataLoader | None = None, show_progress: bool = False
    ) -> None:
        """Find out how each side can be trained, and make its batches and teachers; ``fit`` calls it.

        Raises:
            ModelError: if the CRM cannot be distilled.
        """
        crm, llm = self.sides["CRM"], self.sides["LLM"]
        crm.prepare(crm_path(crm.model, crm.config, train_data, self.config["crm_window_overlap"]))
        if train_data.dataset.item_num > EXACT_UP_TO:  # most of a CRM's time goes into the scores of all items
            crm.matmul_dtype = llm.matmul_dtype
        llm.prepare(llm_path(llm.model, llm.config, train_data, self.config["llm_window_overlap"]))
        self._teaching = Teaching(self.config, train_data.dataset, valid_data, self.checkpoint_dir, show_progress)

    def fit(
        self,
        train_data: TrainDataLoader,
        valid_data: AbstractDataLoader | None = None,
        verbose: bool = True,
        saved: bool = True,
        show_progress: bool = False,
        callback_fn: Callable[[int, float], None] | None = None,
    ) -> tuple[float, dict[str, float] | None]:
        """Run all phases. Arguments and result are those of RecBole's ``Trainer.fit``; the result is the CRM's."""
        self.eval_collector.data_collect(train_data)
        self.prepare(train_data, valid_data, show_progress)
        arguments = FitArguments(train_data, valid_data, verbose, show_progress, callback_fn)
        crm, llm = self.sides["CRM"], self.sides["LLM"]
        if start := self._crm_start():
            crm.start_from(start)
        phases, progress = plan(self.config), self._progress_to_go_on_from()
        first = progress.phase if progress else 0
        if progress:
            # A side that has had no phase is as it was built: a warm-up taken over says nothing of it.
            for name in {phase.student for phase in phases[:first]}:
                self.sides[name].load_progress(progress.sides[name])
        for index in range(first, len(phases)):
            self._run_phase(index, phases, progress if index == first else None, arguments, saved)
        for side in self.sides.values():
            side.finish()
        add_result("llm", {"best_valid_score": llm.best_valid_score, "best_valid_result": llm.best_valid_result})
        add_result("distillation", {"phases": self._phase_records(phases), "CRM": crm.figures, "LLM": llm.figures})
        if saved:
            self.optimizer = crm.optimizer  # what a checkpoint of the served model holds
            save_renamed(super()._save_checkpoint, self, -1, verbose, DataIdentity.of(train_data.dataset))
            self.model.llm.save_adapter(adapter_folder(self.saved_model_file))
            for file in glob.glob(glob.escape(self.resume_file) + "*"):  # half-written ones of killed runs too
                os.remove(file)
        self.best_valid_score, self.best_valid_result = crm.best_valid_score, crm.best_valid_result
        self._add_hparam_to_tensorboard(self.best_valid_score)
        return self.best_valid_score, self.best_valid_result

    def _run_phase(
        self, index: int, phases: Sequence[Phase], progress: Progress | None, arguments: FitArguments, saved: bool
    ) -> None:
        phase, interruption = phases[index], None
        student = self.sides[phase.student]
        if progress is not None and progress.epoch is not None:
            interruption = Interruption(progress.epoch, progress.sides[phase.student])
        else:
            if saved:
                self._progress(index, None).write(self.resume_file)
            if 0 < index == self._n_warm_up_phases:
                for callback in self.after_warm_up:
                    callback()
        restart = self.config["distill_restart"]
        counting = [each for each in phases_that_count(phases, restart) if each.student == phase.student]
        objective = self.objective_for(phase)
        if arguments.verbose:
            self.logger.info(set_color(phase.label, "cyan") + f": at most {phase.epochs} epochs")

        def on_epoch_begin(epoch: int) -> None:
            if saved:
                self._progress(index, epoch).write(self.resume_file)
            for callback in self.on_epoch_begin:
                callback(student, epoch)

        student.run_phase(
            PhaseRun(
                index,
                phase.label,
                phase.epochs,
                objective,
                arguments,
                restart=phase.round > 0 and restart,
                supersedes=phase == counting[0],
                initial_weights=self._vectors_to_read(index, phase),
                interruption=interruption,
                on_epoch_begin=on_epoch_begin,
            )
        )

    def _crm_start(self) -> dict[str, Tensor]:
        """The initial weights of the CRM that are made of the items' texts: its item embeddings."""
        llm, spread = self.model.llm, self.config["crm_text_start"]
        if not spread or llm.text is None:
            return {}
        initial_state = self.sides["CRM"].initial_state
        return initial_embeddings_from_text(initial_state, llm.text, spread, self.config["seed"])

    def _phase_records(self, phases: Sequence[Phase]) -> list[dict[str, Any]]:
        """What each phase came to, in their order, and whether it counts for what its side ends with."""
        records = {record["label"]: record for side in self.sides.values() for record in side.phases}
        counting = phases_that_count(phases, self.config["distill_restart"])
        return [
            {**records[phase.label], "round": phase.round, "taught": phase.taught, "counts": phase in counting}
            for phase in phases
        ]

    def _vectors_to_read(self, index: int, phase: Phase) -> dict[str, Tensor]:
        """The vectors of the CRM that the LLM reads in phase ``index``: the current ones, or those that it has."""
        llm = self.model.llm
        if phase.student != "LLM" or llm.crm_vectors is None:
            return {}
        again = any(earlier.student == "LLM" for earlier in plan(self.config)[:index])
        if again and not self.config["distill_refresh_vectors"]:
            return {"crm_vectors": llm.crm_vectors}
        return {"crm_vectors": llm.brought_to_unit_length(self.model.crm_vectors())}

    def objective_for(self, phase: Phase) -> Objective:
        """What the student of ``phase`` minimises; the teacher, if there is one, scores all training samples for it."""
        student, teacher = self.sides[phase.student], self.sides[phase.teacher]
        # Of items that are no sample's target the LLM alone knows something: their texts.
        text_only_items = self.model.llm.text_only_items
        left_out = text_only_items if phase.student == "LLM" or self.config["crm_leave_out_text_only"] else None
        if not phase.taught:
            return student.own_objective(left_out)
        way = "llm_to_crm" if phase.student == "CRM" else "crm_to_llm"
        alpha, temperature = self.config[f"distill_alpha_{way}"], self.config[f"distill_temperature_{way}"]
        if self._teaching is None:
            raise RuntimeError("objective_for: there is no training data yet; call prepare first.")
        with matmul_precision(student.matmul_dtype):
            cache, synthetic = self._teaching.teachers(
                teacher.path,
                student.path,
                f"{teacher.side} teaches: its distributions",
                temperature,
                text_only_items if phase.student == "LLM" else None,
            )
        weighting, rescale = self.config["distill_weighting"], self.config["distill_rescale_weights"]
        return Objective(student.path, cache, alpha, temperature, weighting, rescale, left_out, synthetic)

    @property
    def has_warm_up(self) -> bool:
        """Whether any side is trained before round 1."""
        return self._n_warm_up_phases > 0

    def save_warm_up(self, file: str | os.PathLike[str], **facts: Any) -> None:
        """Write what :meth:`warm_start` takes up; for callbacks in :attr:`after_warm_up`.

        Args:
            file: where to.
            **facts: written beside it; ``warm_start`` does not look at them.
        """
        self._progress(self._n_warm_up_phases, None).write(file, **facts)

    def warm_start(self, file: str | os.PathLike[str]) -> None:
        """Let ``fit`` begin with round 1, with both sides as they were when :meth:`save_warm_up` wrote ``file``.

        The run then ends as if it had trained the warm-up itself, if the settings that the warm-up depends on are
        those of the run that wrote the file.
        """
        self._warm_start = Progress.read(file, self.device)
        self.logger.info(f"Taking over the warm-up in {file}")

    @property
    def _n_warm_up_phases(self) -> int:
        return sum(phase.round == 0 for phase in plan(self.config))

    def _progress(self, phase: int, epoch: int | None) -> Progress:
        return Progress(phase, epoch, {name: side.progress() for name, side in self.sides.items()})

    def _progress_to_go_on_from(self) -> Progress | None:
        if self._warm_start is not None or not self.config["resume"]:
            return self._warm_start
        if not os.path.exists(self.resume_file):
            self.logger.warning(
                f"resume: there is no interrupted run with these settings ({self.resume_file}); "
                "starting from the beginning."
            )
            return None
        self.logger.info(f"Resuming from {self.resume_file}")
        return Progress.read(self.resume_file, self.device)

    @torch.no_grad()
    def evaluate(
        self,
        eval_data: AbstractDataLoader,
        load_best_model: bool = True,
        model_file: str | None = None,
        show_progress: bool = False,
    ) -> dict[str, float]:
        """The CRM's result, as RecBole's ``Trainer.evaluate``; the LLM's is reported beside it."""
        result = super().evaluate(eval_data, load_best_model, model_file, show_progress)
        if eval_data:
            llm = self.sides["LLM"].evaluate(eval_data, load_best_model=False, show_progress=show_progress)
            add_result("llm", {"test_result": llm})
        return result


def fingerprint(config: Config) -> str:
    """A short hash of every setting that changes what a run computes."""
    settings = sorted(
        (key, str(value)) for key, value in config.final_config_dict.items() if key not in NOT_IN_FINGERPRINT
    )
    return hashlib.sha256(repr(settings).encode("utf-8")).hexdigest()[:12]
