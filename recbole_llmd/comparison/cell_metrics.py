"""What a cell measures besides RecBole's results: values per user, facts of the data, serving time."""

from __future__ import annotations

import contextlib
import hashlib
import time
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from recbole.config import Config
from recbole.data.dataloader import AbstractDataLoader as Loader
from recbole.data.interaction import Interaction
from recbole.evaluator import Evaluator
from recbole.evaluator.base_metric import TopkMetric
from recbole.trainer import Trainer
from scipy.sparse import csr_matrix

from recbole_llmd import registry
from recbole_llmd.unlearning.mapping.correction import axis
from recbole_llmd.unlearning.published_model import where_it_is

Array = npt.NDArray[Any]
# What RecBole evaluates at a time: the users, what is masked (users, items), the targets (users, items).
Batch = tuple[Interaction, tuple[torch.Tensor, torch.Tensor] | None, torch.Tensor, torch.Tensor]

SERVING_USERS = 256  # in one batch, for every model
SERVING_BATCHES = 20


@contextlib.contextmanager
def values_per_user(evaluator: Evaluator) -> Iterator[dict[str, Array]]:
    """A dict that RecBole's evaluator fills with each metric's value for each test user: ``{"ndcg@10": [n_users]}``.

    The values are RecBole's own, taken where it averages them.
    """
    kept: dict[str, Array] = {}
    metrics = [metric for metric in evaluator.metric_class.values() if isinstance(metric, TopkMetric)]

    def watched(metric: TopkMetric) -> Callable[[str, Array], Any]:
        average = metric.topk_result

        def topk_result(name: str, value: Array) -> Any:
            kept.update({f"{name}@{k}": value[:, k - 1].astype(np.float32) for k in metric.topk})
            return average(name, value)

        return topk_result

    for metric in metrics:
        metric.topk_result = watched(metric)
    try:
        yield kept
    finally:
        for metric in metrics:
            del metric.topk_result


def hide_history(train: Loader, valid: Loader, test: Loader) -> None:
    """Leave the items of a user's history out of a sequential model's ranking, as RecBole does for general models.

    RecBole hands the evaluation a user's history to mask with every batch of a general model, and none with a
    sequential model's; here the two loaders hand over the same.
    """
    seen = _interactions(train)
    _mask(valid, seen)
    _mask(test, seen + _pairs(valid))


def _mask(loader: Loader, seen: csr_matrix) -> None:
    collate = loader.collate_fn
    seen = seen.tocsr()

    def masked(index: Array) -> Batch:
        interaction, _, positive_u, positive_i = collate(index)
        row, item = seen[interaction[loader.dataset.uid_field].numpy()].nonzero()
        row, item = torch.from_numpy(row).long(), torch.from_numpy(item).long()
        other = item != positive_i[row]  # a target that was seen before stays in the ranking
        return interaction, (row[other], item[other]), positive_u, positive_i

    loader.collate_fn = masked


def show_history(train: Loader, valid: Loader, test: Loader) -> None:
    """Rank a general model's whole catalogue, the items of the history too, as RecBole does for sequential models."""
    for loader in (valid, test):
        loader.collate_fn = _unmasked(loader.collate_fn)


def _unmasked(collate: Callable[[Array], Batch]) -> Callable[[Array], Batch]:
    def unmasked(index: Array) -> Batch:
        interaction, _, positive_u, positive_i = collate(index)
        return interaction, None, positive_u, positive_i

    return unmasked


def take_up_validation(model: Any, config: Config, valid: Loader) -> bool:
    """Add the users' validation items to the rows of X that a mapping model scores by; its B stays as it was trained.

    Returns:
        bool: whether that was done; other general models have no rows that could be changed after their training.
    """
    name = type(model).__name__
    if registry.mapping_spec(name) is None:
        return False
    mapping = registry.mapping_module(name)
    params = {key: config[key] for key in mapping.PARAMETERS}
    if any(config[key] != value for key, value in mapping.REQUIRED.items()) or not axis(params):
        return False  # by users, their rows are what other users are scored by
    X = csr_matrix(model.interaction_matrix)
    X = (X + _pairs(valid).astype(X.dtype)).tocsr()
    model.interaction_matrix = X
    derived = mapping.derived(X, getattr(model, mapping.MATRIX), params)
    for attribute, value in where_it_is(model, derived).items():
        setattr(model, attribute, value)
    return True


def _interactions(train: Loader) -> csr_matrix:
    """Training interactions, ``[users, items]``; a sequential dataset's rows leave out first items, this does not."""
    return train.dataset.inter_matrix(form="csr")


def _pairs(loader: Loader) -> csr_matrix:
    """The targets of a validation or test loader, ``[users, items]``."""
    dataset = loader.dataset
    users, items = (dataset.inter_feat[field].numpy() for field in (dataset.uid_field, dataset.iid_field))
    return csr_matrix((np.ones(len(users)), (users, items)), shape=(dataset.user_num, dataset.item_num))


def test_users(train: Loader, valid: Loader, test: Loader) -> dict[str, Array]:
    """What is known of each test user, in the order in which RecBole evaluates them.

    Returns:
        Arrays ``[n_users]``: ``user`` and ``target`` (RecBole's ids), ``history`` (interactions before the
        target), ``popularity`` (training interactions of the target).
    """
    dataset, trained = test.dataset, _interactions(train)
    user, target = (dataset.inter_feat[field].numpy() for field in (dataset.uid_field, dataset.iid_field))
    history = trained.sum(axis=1) + _pairs(valid).sum(axis=1)
    return {
        "user": user.astype(np.int32),
        "target": target.astype(np.int32),
        "history": np.asarray(history).ravel()[user].astype(np.int32),
        "popularity": np.asarray(trained.sum(axis=0)).ravel()[target].astype(np.int32),
    }


def data_facts(train: Loader, valid: Loader, test: Loader) -> dict[str, Any]:
    """Sizes, and a hash of the vocabularies: where it is equal, RecBole's ids mean the same users and items."""
    dataset = train.dataset
    vocabulary = hashlib.sha256()
    for field in (dataset.uid_field, dataset.iid_field):
        vocabulary.update("\n".join(map(str, dataset.field2id_token[field])).encode() + b"\0")
    return {
        "users": dataset.user_num - 1,
        "items": dataset.item_num - 1,
        "training_interactions": int(_interactions(train).nnz),
        "validation_users": len(valid.dataset),
        "test_users": len(test.dataset),
        "vocabulary": vocabulary.hexdigest()[:12],
    }


@torch.no_grad()
def serving_microseconds(trainer: Trainer, test: Loader) -> float:
    """Median microseconds in which the trained model scores all items for one user, in batches of like size.

    Takes a trainer that has evaluated ``test``.
    """
    n_users = len(test.dataset)
    size = min(SERVING_USERS, n_users)
    firsts = range(0, n_users - size + 1, size)
    batches = [test.collate_fn(np.arange(first, first + size))[0] for first in firsts][:SERVING_BATCHES]
    trainer.model.eval()
    times = []
    for number in range(SERVING_BATCHES + 2):
        started = time.perf_counter()
        _, scores, _, _ = trainer._full_sort_batch_eval((batches[number % len(batches)], None, None, None))
        float(scores[0, 1])  # waits for an accelerator
        times.append((time.perf_counter() - started) / size * 1e6)
    return float(np.median(times[2:]))
