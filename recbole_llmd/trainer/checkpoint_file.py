"""Checkpoints as RecBole writes them, but complete or not there, and with the data that they belong to."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from recbole.trainer import Trainer

from recbole_llmd.atomic_write import atomic_write
from recbole_llmd.data.identity import DataIdentity, add_identity


def save_renamed(
    save: Callable[..., None],
    trainer: Trainer,
    epoch: int,
    verbose: bool = True,
    identity: DataIdentity | None = None,
    **kwargs: Any,
) -> None:
    """RecBole's ``_save_checkpoint`` under a temporary name, renamed when it is complete.

    Args:
        save: the method.
        trainer: whose it is.
        epoch, verbose, kwargs: as the method takes them.
        identity: of the training data, to be kept in the checkpoint.
    """
    path = kwargs.pop("saved_model_file", trainer.saved_model_file)
    with atomic_write(path) as temporary:
        save(epoch, verbose=False, saved_model_file=temporary, **kwargs)
        if identity is not None:
            add_identity(temporary, identity)
    if verbose:
        trainer.logger.info(f"Saving current: {path}")


def adapter_folder(checkpoint: str) -> str:
    """Where the adapter of the LLM in ``checkpoint`` is written: beside it.

    >>> adapter_folder("saved/LLMRec.pth")
    'saved/LLMRec-adapter'
    """
    return checkpoint.removesuffix(".pth") + "-adapter"
