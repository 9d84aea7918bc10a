"""Variants of one seed share the warm-up of both sides: it costs once, and pairs the comparison.

Until round 1 begins, a run of LLMD4Rec depends on nothing that says how and how long the sides teach each other. What
it has saved for an interruption at that moment is therefore what any other variant would have saved there: the first
variant leaves a copy, and the next ones start from it as if they had been interrupted.
"""

import shutil
import time
from pathlib import Path

import torch

from recbole_llmd.atomic_write import atomic_write
from recbole_llmd.config import side_config
from recbole_llmd.trainer.llmd4rec import fingerprint, plan

AFTER_WARMUP = (  # a setting that is not named here keeps the warm-ups apart, so a new one can do no harm
    "epochs",
    "llm_epochs",
    "distill_rounds",
    "distill_restart",
    "distill_text_start",
    "distill_direction",
    "distill_temperature",
    "distill_alpha_llm_to_crm",
    "distill_alpha_crm_to_llm",
    "distill_weighting",
    "distill_topk",
)


def warmup_key(config):
    """A hash of every setting that a warm-up depends on."""
    return fingerprint(side_config(config, **dict.fromkeys(AFTER_WARMUP)))


def share(trainer, folder, mask_history):
    """Let ``trainer`` (of LLMD4Rec) start from the warm-up in ``folder``, or leave its own there.

    Returns:
        float: the seconds that the warm-up taken over has cost; 0 if none was taken over, None if that is not known.
    """
    config = trainer.config
    file = Path(folder) / f"{config['dataset']}-{warmup_key(config)}-{'unseen' if mask_history else 'all'}.pth"
    first_round = sum(phase.round == 0 for phase in plan(config))
    interrupted = bool(config["resume"])
    if not first_round:
        return 0.0
    if not interrupted and file.exists():
        shutil.copy(file, trainer.resume_file)
        trainer.config = side_config(config, resume=True)
        return torch.load(file, map_location="cpu", weights_only=False)["seconds"]
    started, save = time.perf_counter(), trainer._save_progress

    def save_progress(index, epoch):
        save(index, epoch)
        if index == first_round and epoch is None and not file.exists():
            seconds = None if interrupted else time.perf_counter() - started
            progress = torch.load(trainer.resume_file, map_location="cpu", weights_only=False)
            with atomic_write(file) as temporary:
                torch.save({**progress, "seconds": seconds}, temporary)

    trainer._save_progress = save_progress
    return 0.0
