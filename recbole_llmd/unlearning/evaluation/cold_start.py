"""What the first request costs that a model's checkpoint is asked: loading it, and answering."""

from __future__ import annotations

import copy
import logging
import random
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from time import perf_counter
from typing import TYPE_CHECKING

import numpy as np
from recbole.config import Config
from recbole.model.abstract_recommender import GeneralRecommender

from recbole_llmd.config import plain_config
from recbole_llmd.errors import CheckpointError
from recbole_llmd.random_state import isolated_random_state
from recbole_llmd.unlearning.request import Request
from recbole_llmd.unlearning.unlearner import Unlearner

if TYPE_CHECKING:
    from recbole.data.dataset import Dataset


def cold_seconds(
    model: GeneralRecommender, config: Config, dataset: Dataset, request: Request, modes: Iterable[str]
) -> dict[str, float]:
    """Seconds from the model's checkpoint to an answered request, by the engine's mode, with the engine's defaults.

    Loading reads the data files as well, which a checkpoint is compared with. The file does not stay.

    Args:
        model: a trained mapping model; it is not changed.
        config: RecBole's Config of the run.
        dataset: the training dataset.
        request: the first one.
        modes: of the engine; each loads the checkpoint again.

    Returns:
        dict: empty where the dataset cannot be made again from its files by the seed of its Config.
    """
    engine = Unlearner(model, dataset)
    engine.model, engine.config = copy.copy(model), plain_config(config, engine.name)
    seconds = {}
    with tempfile.TemporaryDirectory() as folder, _undisturbed():
        path = Path(folder) / "model.pth"
        engine.save(path)
        for mode in modes:
            started = perf_counter()
            try:
                Unlearner.from_checkpoint(path, mode=mode).apply(request)
            except CheckpointError as error:  # such as a split that no seed gives again
                logging.getLogger().warning(f"the first request from a checkpoint is not timed: {error}")
                return {}
            seconds[mode] = perf_counter() - started
    return seconds


@contextmanager
def _undisturbed() -> Iterator[None]:
    """Loading seeds the generators of random numbers and logs what it reads: outside, nothing is left of it."""
    logger = logging.getLogger()
    states, level = (random.getstate(), np.random.get_state()), logger.level
    logger.setLevel(max(level, logging.WARNING))
    try:
        with isolated_random_state(0):
            yield
    finally:
        logger.setLevel(level)
        random.setstate(states[0])
        np.random.set_state(states[1])
