"""The trainer of LLMD4Rec: warm-up of both sides, then rounds in which each teaches the other."""

import glob
import hashlib
import os
from dataclasses import dataclass

import torch
from recbole.trainer import Trainer
from recbole.utils import set_color

from recbole_llmd import config as configs
from recbole_llmd.atomic_write import atomic_write
from recbole_llmd.data.windows import WindowLoader, add_row_numbers
from recbole_llmd.distill.scorers import CRMScorer, LLMScorer
from recbole_llmd.distill.teacher_cache import TeacherCache, resolve_topk
from recbole_llmd.distill.text_start import text_start
from recbole_llmd.llm.text_match import whitened
from recbole_llmd.result_collector import add_result
from recbole_llmd.trainer.llmrec import adapter_folder, save_renamed
from recbole_llmd.trainer.objective import Objective
from recbole_llmd.trainer.side_trainer import PartsCollector, SideTrainer

OTHER = {"CRM": "LLM", "LLM": "CRM"}
# Keys that change where a run writes and what it shows, not what it computes: a run may be resumed with others.
NOT_IN_FINGERPRINT = {
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
    """One side's training against the frozen other one (``teacher``) or alone."""

    round: int  # 0 is the warm-up
    student: str
    epochs: int
    taught: bool

    @property
    def label(self):
        when = f"round {self.round}" if self.round else "warm-up"
        how = f" ({OTHER[self.student]} teaches)" if self.taught else ""
        return f"{when}, {self.student} phase{how}"


def plan(config):
    """The phases of a run. All directions have the same phases with the same epochs; they differ in who is taught."""
    direction = config["distill_direction"]
    phases = [Phase(0, "LLM", config["llm_warmup_epochs"], False), Phase(0, "CRM", config["crm_warmup_epochs"], False)]
    for number in range(1, config["distill_rounds"] + 1):
        phases.append(Phase(number, "CRM", config["epochs"], direction in ("mutual", "llm_to_crm")))
        phases.append(Phase(number, "LLM", config["llm_epochs"], direction in ("mutual", "crm_to_llm")))
    return [phase for phase in phases if phase.epochs > 0]


class LLMD4RecTrainer(Trainer):
    """Alternates the phases of :func:`plan`; each phase is one RecBole ``fit`` of one side.

    Each side keeps the weights of its best validation epoch over the whole run: they teach the other side, and the
    CRM's are what the run returns, evaluates and saves. A phase starts from its side's initial weights, or, without
    ``distill_restart``, from its best ones.
    """

    def __init__(self, config, model):
        super().__init__(config, model)
        self.eval_collector = PartsCollector(config)
        llm_config = configs.llm_side_config(config)
        self.sides = {
            "CRM": SideTrainer(config, model.crm, "CRM", config["crm_window_overlap"]),
            "LLM": SideTrainer(llm_config, model.llm, "LLM", config["llm_window_overlap"], config["llm_ema_decay"]),
        }
        self.resume_file = os.path.join(
            self.checkpoint_dir, f"LLMD4Rec-{config['dataset']}-{fingerprint(config)}.resume.pth"
        )

    def fit(self, train_data, valid_data=None, verbose=True, saved=True, show_progress=False, callback_fn=None):
        """Run all phases. Arguments and result are those of RecBole's ``Trainer.fit``; the result is the CRM's."""
        self.eval_collector.data_collect(train_data)
        add_row_numbers(train_data.dataset)
        crm, llm = self.sides["CRM"], self.sides["LLM"]
        crm.prepare(CRMScorer(self.model.crm, train_data.dataset, train_data), train_data)
        llm.prepare(LLMScorer(self.model.llm), train_data)
        phases = plan(self.config)
        first, epoch, progress = self._resumed() if self.config["resume"] else (0, 0, None)
        if progress:
            for name, side in self.sides.items():
                side.load_progress(progress[name])
        for index in range(first, len(phases)):
            middle = (epoch, progress) if index == first and progress else (0, None)
            self._run_phase(
                index, phases[index], middle, train_data, valid_data, verbose, saved, show_progress, callback_fn
            )
        add_result("llm", {"best_valid_score": llm.best_valid_score, "best_valid_result": llm.best_valid_result})
        add_result(
            "distillation", {"phases": [phase.label for phase in phases], "CRM": crm.figures, "LLM": llm.figures}
        )
        if saved:
            self.optimizer = crm.optimizer  # what a checkpoint of the served model holds
            save_renamed(super()._save_checkpoint, self, -1, verbose)
            self.model.llm.save_adapter(adapter_folder(self.saved_model_file))
            for file in glob.glob(glob.escape(self.resume_file) + "*"):  # half-written ones of killed runs too
                os.remove(file)
        self.best_valid_score, self.best_valid_result = crm.best_valid_score, crm.best_valid_result
        self._add_hparam_to_tensorboard(self.best_valid_score)
        return self.best_valid_score, self.best_valid_result

    def _run_phase(self, index, phase, middle, train_data, valid_data, verbose, saved, show_progress, callback_fn):
        epoch, progress = middle
        student = self.sides[phase.student]
        restart = phase.round > 0 and self.config["distill_restart"]
        resumed = progress and epoch is not None
        if saved and not resumed:
            self._save_progress(index, None)
        student.begin(index, phase.label, phase.epochs, restart, self._start(phase) if restart else None)
        if resumed:
            student.load_progress(progress[phase.student], epoch)
        student.objective = self._objective(phase, train_data, show_progress)
        if saved:
            student.before_epoch = lambda epoch: self._save_progress(index, epoch)
        if verbose:
            self.logger.info(set_color(phase.label, "cyan") + f": at most {phase.epochs} epochs")
        student.fit(
            train_data, valid_data, verbose=verbose, saved=True, show_progress=show_progress, callback_fn=callback_fn
        )
        student.restore_best()

    def _start(self, phase):
        """The initial weights that the teacher gives a student: a CRM's item embeddings, by the items' texts."""
        llm, spread = self.model.llm, self.config["distill_text_start"]
        if not (phase.taught and phase.student == "CRM" and spread and llm.text is not None):
            return None
        return text_start(self.sides["CRM"].initial_state, whitened(llm.text), spread, self.config["seed"])

    def _objective(self, phase, train_data, show_progress):
        student, teacher = self.sides[phase.student], self.sides[OTHER[phase.student]]
        if not phase.taught:
            return student.own_objective()
        # Of items that are no sample's target the LLM alone knows something: their texts.
        text_only = self.model.llm.text_only
        dataset, temperature = train_data.dataset, self.config["distill_temperature"]
        cache = TeacherCache(
            len(dataset),
            dataset.item_num,
            temperature,
            resolve_topk(self.config["distill_topk"], dataset.item_num),
            self.checkpoint_dir,
            text_only if phase.student == "LLM" else None,
        )
        loader = None
        if teacher.scorer.windows:
            loader = WindowLoader(
                teacher.window_loader.windows, teacher.config, teacher.config["train_batch_size"], shuffle=False
            )
        cache.fill(
            teacher.scorer,
            loader,
            dataset,
            self.config["train_batch_size"],
            f"{teacher.side} teaches: its distributions",
            show_progress,
        )
        alpha = self.config["distill_alpha_llm_to_crm" if phase.student == "CRM" else "distill_alpha_crm_to_llm"]
        return Objective(student.scorer, cache, alpha, temperature, self.config["distill_weighting"], text_only)

    def _save_progress(self, index, epoch):
        """Keep everything needed to go on before ``epoch`` of phase ``index`` (None: before the phase begins)."""
        with atomic_write(self.resume_file) as temporary:
            torch.save(
                {
                    "phase": index,
                    "epoch": epoch,
                    **{name: side.progress() for name, side in self.sides.items()},
                },
                temporary,
            )

    def _resumed(self):
        if not os.path.exists(self.resume_file):
            self.logger.warning(
                f"resume: there is no interrupted run with these settings ({self.resume_file}); "
                "starting from the beginning."
            )
            return 0, 0, None
        # Written by this package in the user's own checkpoint_dir; it holds NumPy scalars beside the tensors.
        progress = torch.load(self.resume_file, map_location=self.device, weights_only=False)
        self.logger.info(f"Resuming from {self.resume_file}")
        return progress["phase"], progress["epoch"], progress

    @torch.no_grad()
    def evaluate(self, eval_data, load_best_model=True, model_file=None, show_progress=False):
        """The CRM's result, as RecBole's ``Trainer.evaluate``; the LLM's is reported beside it."""
        result = super().evaluate(eval_data, load_best_model, model_file, show_progress)
        if eval_data:
            llm = self.sides["LLM"].evaluate(eval_data, load_best_model=False, show_progress=show_progress)
            add_result("llm", {"test_result": llm})
        return result


def fingerprint(config):
    """A short hash of every setting that changes what a run computes."""
    settings = sorted(
        (key, str(value)) for key, value in config.final_config_dict.items() if key not in NOT_IN_FINGERPRINT
    )
    return hashlib.sha256(repr(settings).encode("utf-8")).hexdigest()[:12]
