"""Variants of one seed share the warm-up of both sides: it costs once, and pairs the comparison.

Until round 1 begins, a run that distils depends on nothing that says how and how long the sides teach each other. What
one variant is at that moment is therefore what any other would have been there: the first variant leaves its state in
a file, and the next ones go on from it.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import torch
from recbole.config import Config
from recbole.trainer import Trainer

from recbole_llmd import registry
from recbole_llmd.config import side_config
from recbole_llmd.trainer.llmd4rec import fingerprint


@runtime_checkable
class SharesWarmUp(Protocol):
    """A trainer whose runs begin with a warm-up that others can take over.

    Attributes:
        config: the run's Config.
        after_warm_up: called when the warm-up has been trained.
    """

    config: Config
    after_warm_up: list[Callable[[], None]]

    @property
    def has_warm_up(self) -> bool:
        """Whether this run begins with a warm-up."""

    def save_warm_up(self, file: Path, **facts: Any) -> None:
        """Write the state after the warm-up, and ``facts`` beside it."""

    def warm_start(self, file: Path) -> None:
        """Begin after the warm-up that ``file`` holds."""


def warmup_key(config: Config) -> str:
    """A hash of every setting that a warm-up depends on; a setting that its model does not name as one that counts
    afterwards alone keeps warm-ups apart, so a new one can do no harm.
    """
    spec = registry.spec(config["model"])
    untrained = [key for epochs, keys in spec.only_in_warm_up.items() if not config[epochs] for key in keys]
    return fingerprint(side_config(config, **dict.fromkeys([*spec.after_warm_up, *untrained])))


def share(trainer: Trainer, folder: str | Path, mask_history: bool) -> float | None:
    """Let ``trainer`` begin with the warm-up in ``folder``, or leave its own there.

    Args:
        trainer: any trainer; nothing is shared by one that has no warm-up.
        folder: the folder of shared warm-ups.
        mask_history: whether items of the history are hidden from validation, on which the warm-up's best epoch
            depends.

    Returns:
        float: the seconds that the warm-up taken over has cost; 0 if none was taken over, None if that is not known.
    """
    if not isinstance(trainer, SharesWarmUp) or not trainer.has_warm_up:
        return 0.0
    config = trainer.config
    file = Path(folder) / f"{config['dataset']}-{warmup_key(config)}-{'unseen' if mask_history else 'all'}.pth"
    resumed = bool(config["resume"])
    if not resumed and file.exists():
        trainer.warm_start(file)
        seconds: float | None = torch.load(file, map_location="cpu", weights_only=False)["seconds"]
        return seconds
    began = time.perf_counter()

    def leave() -> None:
        if not file.exists():
            trainer.save_warm_up(file, seconds=None if resumed else time.perf_counter() - began)

    trainer.after_warm_up.append(leave)
    return 0.0
