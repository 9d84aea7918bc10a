"""Mapping models in RecBole's checkpoints: read without training again, written so that RecBole reads them."""

import os

import numpy as np
import scipy.sparse as sp
import torch
from recbole.data import create_dataset, data_preparation
from recbole.utils import get_model, init_seed

from recbole_llmd.atomic_write import atomic_write
from recbole_llmd.errors import CheckpointError
from recbole_llmd.unlearning.mapping import mapping_of


class _OneByOne:
    """Stands for a dataset while a RecBole mapping model is built, which trains in its constructor: one user, one item
    and no interaction, so that this takes no time. The checkpoint's matrices then take the place of what it trained.
    """

    def __init__(self, dataset):
        self._dataset = dataset

    def __getattr__(self, name):
        return getattr(self._dataset, name)

    def num(self, field):
        return 1

    def inter_matrix(self, form="coo", value_field=None):
        return sp.csr_matrix((1, 1), dtype=np.float32).asformat(form)


def load(path):
    """The model of a checkpoint, its training dataset, and the checkpoint's content.

    Raises:
        CheckpointError: if there is no such file, or it holds no mapping model.
    """
    if not os.path.isfile(path):
        raise CheckpointError(f"checkpoint = {str(path)!r}: there is no such file.")
    # Named by the user, and holding RecBole's pickled Config.
    content = torch.load(path, map_location="cpu", weights_only=False)
    if not isinstance(content, dict) or "config" not in content:
        raise CheckpointError(f"checkpoint = {str(path)!r}: expected a checkpoint that RecBole wrote.")
    config = content["config"]
    matrix = mapping_of(config["model"]).MATRIX
    init_seed(config["seed"], config["reproducibility"])
    dataset = data_preparation(config, create_dataset(config))[0].dataset
    init_seed(config["seed"], config["reproducibility"])
    stored = content.get("other_parameter") or {}
    model_class = get_model(config["model"])
    # RecBole's ADMMSLIM stores no matrices: RecBole itself, too, trains it again where it loads it.
    model = model_class(config, _OneByOne(dataset) if matrix in stored else dataset)
    model.n_users, model.n_items = dataset.user_num, dataset.item_num
    if matrix in stored:
        model.interaction_matrix = dataset.inter_matrix(form="csr").astype(np.float32)
    model.load_state_dict(content["state_dict"])
    model.load_other_parameter(stored)
    for field, tokens in content.get("new_tokens", {}).items():
        first = len(dataset.field2id_token[field])
        dataset.field2token_id[field].update({token: first + i for i, token in enumerate(tokens)})
        dataset.field2id_token[field] = np.append(dataset.field2id_token[field], tokens)
    return model.to(config["device"]), dataset, content


def save(path, engine):
    """Write the engine's model to ``path``, whole or not at all. Users and items that it grew by are named there."""
    content = {
        "epoch": 0,
        "cur_step": 0,
        "best_valid_score": None,
        "optimizer": None,
        **(engine.checkpoint or {}),
        "config": engine.config,
        "state_dict": engine.model.state_dict(),
        "other_parameter": engine.model.other_parameter(),
        "new_tokens": engine.new_tokens,
    }
    with atomic_write(path) as temporary:
        torch.save(content, temporary, pickle_protocol=4)
