"""One phase of one side, as an object: what ``SideTrainer.run_phase`` is given."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from recbole.data.dataloader import AbstractDataLoader, TrainDataLoader
from torch import Tensor

from recbole_llmd.trainer.objective import Objective


@dataclass(frozen=True)
class FitArguments:
    """The arguments of RecBole's ``Trainer.fit`` that every phase of a run shares; their meaning is RecBole's.

    >>> FitArguments(train_data=None).show_progress
    False
    """

    train_data: TrainDataLoader
    valid_data: AbstractDataLoader | None = None
    verbose: bool = True
    show_progress: bool = False
    callback_fn: Callable[[int, float], None] | None = None


@dataclass(frozen=True)
class Interruption:
    """Where a phase was interrupted.

    Attributes:
        epoch: the epoch to go on with.
        progress: what ``SideTrainer.progress`` gave before that epoch.

    >>> Interruption(epoch=3, progress={}).epoch
    3
    """

    epoch: int
    progress: dict[str, Any]


@dataclass(frozen=True)
class PhaseRun:
    """One phase of one side.

    Attributes:
        index: the phase's place in the run; with the run's seed and the epoch it decides an epoch's random numbers.
        label: what the log says.
        epochs: the most epochs that it takes; early stopping may end it before.
        objective: what is minimised; it holds the teacher, if there is one.
        fit: loaders, log and callback.
        restart: whether training starts from the side's initial weights instead of the best ones so far:
            a student that has already fitted the samples too closely learns little from a teacher.
        supersedes: whether the phases before this one no longer count for the weights that the side ends with.
        initial_weights: entries of the ``state_dict`` that take the place of those that the phase would begin with.
        interruption: where the phase was interrupted, if it is being resumed.
        on_epoch_begin: called with the number of every epoch before its first batch.

    >>> run = PhaseRun(index=2, label="round 1", epochs=3, objective=None, fit=FitArguments(train_data=None))
    >>> run.restart, run.supersedes
    (False, False)
    """

    index: int
    label: str
    epochs: int
    objective: Objective
    fit: FitArguments
    restart: bool = False
    supersedes: bool = False
    initial_weights: Mapping[str, Tensor] = field(default_factory=dict)
    interruption: Interruption | None = None
    on_epoch_begin: Callable[[int], None] | None = None
