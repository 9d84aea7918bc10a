"""A name of its own for every checkpoint.

RecBole calls a trainer's checkpoint ``<model>-<time>.pth`` with the time in seconds: two trainers made within one
second write one file, and the first model is lost. Here the name holds model, dataset, time and a random suffix.
"""

from __future__ import annotations

import functools
import os
import re
import secrets
from typing import Any

import torch.distributed
from recbole.trainer import trainer as recbole_trainer


def unique_name(model: str, dataset: str) -> str:
    """The name of a checkpoint, such as ``EASE-ml-100k-Nov-27-2026_08-35-31-3f9a1c.pth``; the same in every process
    of a distributed run, all of which read what the first one has written.
    """
    stem = re.sub(r"[^\w.+-]+", "-", f"{model}-{dataset}")
    name = [f"{stem}-{recbole_trainer.get_local_time()}-{secrets.token_hex(3)}.pth"]
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        torch.distributed.broadcast_object_list(name)
    return name[0]


def install() -> None:
    """Let RecBole's trainers name their checkpoints so; called once by ``import recbole_llmd``."""
    for trainer in (recbole_trainer.Trainer, recbole_trainer.DecisionTreeTrainer):
        trainer.__init__ = _with_unique_name(trainer.__init__)


def _with_unique_name(initialise: Any) -> Any:
    @functools.wraps(initialise)
    def __init__(self: Any, config: Any, model: Any, *args: Any, **kwargs: Any) -> None:
        initialise(self, config, model, *args, **kwargs)
        folder = os.path.dirname(self.saved_model_file)
        self.saved_model_file = os.path.join(folder, unique_name(config["model"], config["dataset"]))

    return __init__
