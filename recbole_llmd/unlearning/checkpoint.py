"""Mapping models in RecBole's checkpoints: read without training again, written so that RecBole reads them."""

from __future__ import annotations

import os
from collections.abc import Mapping
from os import PathLike
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

import numpy as np
import scipy.sparse as sp
import torch
from numpy.typing import NDArray
from recbole.config import Config
from recbole.data import create_dataset
from recbole.data.utils import load_split_dataloaders
from recbole.utils import get_model, init_seed

from recbole_llmd.atomic_write import atomic_write
from recbole_llmd.data.identity import KEY, NEW_TOKENS, DataIdentity, add_tokens
from recbole_llmd.errors import CheckpointError
from recbole_llmd.registry import mapping_module
from recbole_llmd.unlearning.mapping.correction import MappingModel

if TYPE_CHECKING:
    from recbole.data.dataset import Dataset
    from recbole.model.abstract_recommender import GeneralRecommender

    from recbole_llmd.unlearning.unlearner import Unlearner


REMEMBERED = "remembered"  # in checkpoints
LARGE = 2**20  # bytes of an array


class _Loaded(NamedTuple):
    """A model from its checkpoint, with its training dataset (and the tokens that the model grew by)."""

    model: GeneralRecommender
    dataset: Dataset
    content: dict[str, Any]


class SavedEngine(Protocol):
    """What is written of an engine: its model, and which data this belongs to."""

    model: Any
    config: Any
    checkpoint: dict[str, Any] | None
    identity: DataIdentity | None

    @property
    def X(self) -> sp.csr_matrix:
        """The interactions that the model has."""

    @property
    def in_files(self) -> sp.csr_matrix | None:
        """The training interactions of the data files."""


class _OneByOne:
    """Stands for a dataset while a RecBole mapping model is built, which trains in its constructor: one user, one item
    and no interaction, so that this takes no time. The checkpoint's matrices then take the place of what it trained.
    """

    def __init__(self, dataset: Dataset) -> None:
        self._dataset = dataset

    def __getattr__(self, name: str) -> Any:
        return getattr(self._dataset, name)

    def num(self, field: str) -> int:
        return 1

    def inter_matrix(self, form: str = "coo", value_field: str | None = None) -> sp.spmatrix:
        return sp.csr_matrix((1, 1), dtype=np.float32).asformat(form)


def load(path: str | PathLike[str], content: dict[str, Any] | None = None) -> _Loaded:
    """The model of a checkpoint that RecBole or :func:`save` wrote; ``content``: what :func:`read` gave of it.

    Raises:
        CheckpointError: if there is no such file, RecBole did not write it, or the data are not there or no longer
            those that the model was trained on.
        ModelError: if it holds no mapping model.
    """
    content = read(path) if content is None else content
    config, stored = content["config"], content.get("other_parameter") or {}
    mapping = mapping_module(config["model"])
    dataset = training_data(path, config)
    X = dataset.inter_matrix(form="csr").astype(np.float32)
    refuse_other_data(path, _difference(content, mapping, DataIdentity.of(dataset, X), X))
    init_seed(config["seed"], config["reproducibility"])
    # RecBole's ADMMSLIM stores no matrices: RecBole itself, too, trains it again where it loads it.
    is_stored = mapping.MATRIX in stored
    model = get_model(config["model"])(config, _OneByOne(dataset) if is_stored else dataset)
    model.n_users, model.n_items = dataset.user_num, dataset.item_num
    if is_stored:
        model.interaction_matrix = X
    model.load_state_dict(content["state_dict"])
    model.load_other_parameter(stored)
    for field, tokens in content.get(NEW_TOKENS, {}).items():
        add_tokens(dataset, field, tokens)
    return _Loaded(model.to(config["device"]), dataset, content)


def training_data(path: str | PathLike[str], config: Config) -> Dataset:
    """The training dataset that RecBole makes of the data files today, for the checkpoint at ``path``."""
    init_seed(config["seed"], config["reproducibility"])
    try:
        loaders = load_split_dataloaders(config)
        # Without the samplers and loaders that RecBole's data_preparation makes of all parts.
        dataset: Dataset = create_dataset(config).build()[0] if loaders is None else loaders[0].dataset
    except ValueError as error:
        raise CheckpointError(
            f"checkpoint = {str(path)!r}: the data that the model was trained on cannot be read: "
            f"{' '.join(str(error).split())} Work in the folder of the training, or restore the data."
        ) from error
    return dataset


def refuse_other_data(path: str | PathLike[str], difference: str | None) -> None:
    """Raise an error if the data of today differ from those of the training, in the way given."""
    if difference:
        raise CheckpointError(
            f"checkpoint = {str(path)!r}: the data are not those that the model was trained on: {difference}. Users "
            "and items are numbered by the data file, so that others than those named would be forgotten. Restore the "
            "file, or train again."
        )


def not_replaced(content: Mapping[str, Any]) -> dict[str, Any]:
    """What of a checkpoint's content :func:`save` writes again as it was: no matrix from before a request."""
    replaced = ("config", "state_dict", "other_parameter", NEW_TOKENS, KEY, REMEMBERED)
    return {key: value for key, value in content.items() if key not in replaced}


def save(path: str | PathLike[str], engine: Unlearner) -> None:
    """Write the engine's model to ``path``, whole or not at all.

    Beside what RecBole reads, the file names the users and items that the model grew by, the data it belongs to, and
    what the first request on a model computes.
    """
    engine.fold()
    write(path, engine, {NEW_TOKENS: engine.new_tokens, REMEMBERED: engine.remembered()})


def write(path: str | PathLike[str], engine: SavedEngine, more: Mapping[str, Any]) -> None:
    """Write what checkpoints of all engines have, and ``more``, to ``path``, whole or not at all."""
    content = {
        "epoch": 0,
        "cur_step": 0,
        "best_valid_score": None,
        "optimizer": None,
        **(engine.checkpoint or {}),
        "config": engine.config,
        "state_dict": engine.model.state_dict(),
        "other_parameter": {key: _Array.where_large(value) for key, value in engine.model.other_parameter().items()},
        KEY: identity.as_dict() if (identity := _identity(engine)) else None,
        **more,
    }
    with atomic_write(path) as temporary:
        torch.save(content, temporary, pickle_protocol=4)


class _Array:
    """Stands for an array in a checkpoint: read as that array, from a tensor's place in the file, with fewer copies."""

    def __init__(self, array: NDArray[Any]) -> None:
        self._array = array

    @staticmethod
    def where_large(value: Any) -> Any:
        large = type(value) is np.ndarray and value.dtype.kind == "f" and value.nbytes >= LARGE
        return _Array(value) if large else value

    def __reduce__(self) -> tuple[Any, ...]:
        return torch.Tensor.numpy, (torch.from_numpy(np.ascontiguousarray(self._array)),)


def _identity(engine: SavedEngine) -> DataIdentity | None:
    """The data that a model belongs to: their interactions only if the model has them all."""
    X = engine.in_files
    if engine.identity is None or X is None:
        return None
    return engine.identity.without_interactions() if (X != engine.X).nnz else engine.identity


def read(path: str | PathLike[str]) -> dict[str, Any]:
    """The content of a checkpoint that RecBole wrote.

    Raises:
        CheckpointError: if there is no such file, or RecBole did not write it.
    """
    if not os.path.isfile(path):
        raise CheckpointError(f"checkpoint = {str(path)!r}: there is no such file. Give one that RecBole wrote.")
    try:  # named by the user, and holding RecBole's pickled Config
        content = torch.load(path, map_location="cpu", weights_only=False)
    except Exception as error:  # reading a file that is no pickle, or half of one, can fail in any way
        raise CheckpointError(
            f"checkpoint = {str(path)!r}: cannot be read ({type(error).__name__}: {' '.join(str(error).split())}). "
            "Give a complete file that RecBole wrote."
        ) from error
    if isinstance(content, dict):
        config = content.get("config")
        if isinstance(config, (Config, Mapping)) and "model" in config:
            return content
    raise CheckpointError(f"checkpoint = {str(path)!r}: expected a checkpoint that RecBole wrote.")


def _difference(content: Mapping[str, Any], mapping: MappingModel, today: DataIdentity, X: sp.csr_matrix) -> str | None:
    """How the data of today (X and its identity) differ from what the model in a checkpoint was trained on."""
    if content.get(KEY):
        return DataIdentity.from_dict(content[KEY]).mismatch(today)
    if KEY in content:
        return "which they are is unknown, since the engine that saved it had no dataset but only a Config"
    params = {key: content["config"][key] for key in mapping.PARAMETERS}
    return (
        None if mapping.trained_on(content.get("other_parameter") or {}, X, params) else "the interactions are others"
    )
