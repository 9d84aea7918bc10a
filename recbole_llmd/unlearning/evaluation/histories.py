"""The histories that RecBole masks in its evaluation, with what was forgotten taken out."""

from __future__ import annotations

import copy

import numpy as np
import scipy.sparse as sp
import torch
from numpy.typing import NDArray
from recbole.data.dataloader import FullSortEvalDataLoader


def retained_loader(
    eval_data: FullSortEvalDataLoader,
    users: NDArray[np.int64],
    items: NDArray[np.int64],
    only: NDArray[np.int64] | None = None,
) -> FullSortEvalDataLoader | None:
    """RecBole's full-sort loader with these interactions taken out of the histories that it masks.

    Args:
        eval_data: a full-sort loader; it is not changed.
        users, items: pairs of internal ids [n].
        only: internal ids of the users to evaluate, or None for all.

    Returns:
        the loader, or None if it would be empty.
    """
    dataset, sampler = eval_data._dataset, copy.copy(eval_data._sampler)
    if only is not None:
        chosen = torch.from_numpy(np.isin(dataset.inter_feat[dataset.uid_field].numpy(), only))
        if not chosen.any():
            return None
        dataset = dataset.copy(dataset.inter_feat[chosen])
    sampler.used_ids = sampler.used_ids.copy()
    for user in np.unique(users):
        if user < len(sampler.used_ids):  # injected users are in no loader
            sampler.used_ids[user] = sampler.used_ids[user] - set(items[users == user].tolist())
    return type(eval_data)(eval_data.config, dataset, sampler)


def masked_history(eval_data: FullSortEvalDataLoader, shape: tuple[int, int]) -> sp.csr_matrix:
    """What RecBole masks, CSR [n_users, n_items]: the items of this split and of those before, but for the positives.

    Args:
        eval_data: a full-sort loader.
        shape: of the result; users beyond the loader's have no history.
    """
    used, positives = eval_data._sampler.used_ids, eval_data.uid2positive_item
    histories = [
        list(items if positives[user] is None else items - set(positives[user].tolist()))
        for user, items in enumerate(used)
    ]
    indptr = np.append(0, np.cumsum([len(history) for history in histories]))
    indptr = np.append(indptr, np.full(shape[0] - len(histories), indptr[-1]))
    indices = np.array([item for history in histories for item in history], np.int64)
    return sp.csr_matrix((np.ones(len(indices), np.float32), indices, indptr), shape=shape)
