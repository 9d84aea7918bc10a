"""Which items follow which in training sequences: counts with decay, a linear model, histories as rows of weights."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import scipy.linalg
import scipy.sparse as sp
from numpy.typing import NDArray
from recbole.data.dataset import SequentialDataset

SAMPLES_AT_ONCE = 50_000
# Weights are whole numbers of these parts of 1, so that float64 sums them and their products exactly, in any order: the
# sum over some samples, taken off the sum over all, leaves that over the rest, to the last bit.
PARTS = 2.0**32  # of transitions: exact up to sums of 2^21
PARTS_OF_HISTORIES = 2.0**18  # of which products are summed: exact up to 2^17


@dataclass(frozen=True)
class Samples:
    """(history, next item) samples as arrays.

    Attributes:
        items: the histories, right-padded item ids, ``[n, length]``.
        lengths: their lengths, ``[n]``.
        targets: the next items, ``[n]``.
        users: user ids, ``[n]``.

    >>> samples = Samples(np.array([[1, 0], [1, 2]]), np.array([1, 2]), np.array([2, 3]), np.array([1, 1]))
    >>> samples[np.array([1])].targets.tolist(), len(samples)
    ([3], 2)
    """

    items: NDArray[np.int64]
    lengths: NDArray[np.int64]
    targets: NDArray[np.int64]
    users: NDArray[np.int64]

    @classmethod
    def of(cls, dataset: SequentialDataset) -> Samples:
        """Those of a part of a built RecBole dataset."""
        fields = (dataset.item_id_list_field, dataset.item_list_length_field, dataset.iid_field, dataset.uid_field)
        return cls(*(dataset.inter_feat[field].numpy() for field in fields))

    def __len__(self) -> int:
        return len(self.targets)

    def __getitem__(self, chosen: NDArray[np.int64] | NDArray[np.bool_] | slice) -> Samples:
        return Samples(self.items[chosen], self.lengths[chosen], self.targets[chosen], self.users[chosen])

    def popularity(self, n_items: int) -> NDArray[np.float64]:
        """How often each item was chosen, ``[n_items]``, first items of users included: as RecBole counts."""
        chosen = np.concatenate([self.targets, self.items[self.lengths == 1, 0]])
        return np.bincount(chosen, minlength=n_items).astype(np.float64)


def item_popularity(dataset: SequentialDataset) -> NDArray[np.float64]:
    """How often each item was chosen, first items of users included, ``[n_items]``."""
    return Samples.of(dataset).popularity(dataset.item_num)


def drawn_numbers(n: int, most: int, seed: int) -> NDArray[np.int64]:
    """At most ``most`` of the numbers below ``n``, drawn by ``seed``.

    >>> len(drawn_numbers(5, most=3, seed=1)), len(drawn_numbers(5, most=9, seed=1))
    (3, 5)
    """
    return np.random.default_rng(seed).permutation(n)[:most]


def transition_counts(samples: Samples, weight: Callable[[int], float], n_items: int) -> sp.csr_matrix:
    """How often one item came before another, CSR ``[n_items, n_items]``, from RecBole's training samples.

    Every pair of a sequence stands once among the samples: one item in the history, the other as the target. Exact
    (:data:`PARTS`).

    Args:
        samples: the training samples.
        weight: what a pair counts, by its distance: 1 for an item and the one after it.
        n_items: the number of items, with the padding.

    >>> samples = Samples(np.array([[1, 0], [1, 2]]), np.array([1, 2]), np.array([2, 3]), np.array([1, 1]))
    >>> counts = transition_counts(samples, lambda distance: 0.5 ** (distance - 1), 4)
    >>> counts.toarray()[1].tolist(), counts.toarray()[2].tolist()
    ([0.0, 0.0, 1.0, 0.5], [0.0, 0.0, 0.0, 1.0])
    """
    items, lengths = samples.items, samples.lengths
    counts = sp.csr_matrix((n_items, n_items))
    for distance in range(1, int(lengths.max(initial=0)) + 1):
        reaching = lengths >= distance
        before = items[reaching, lengths[reaching] - distance]
        weights = np.full(len(before), np.rint(weight(distance) * PARTS) / PARTS)
        counts = counts + sp.csr_matrix((weights, (before, samples.targets[reaching])), shape=counts.shape)
    counts.eliminate_zeros()
    return counts.tocsr()


def weighted_histories(
    items: NDArray[np.int64], lengths: NDArray[np.int64], recency: float, n_items: int
) -> sp.csr_matrix:
    """The histories as rows of weights, CSR ``[batch, n_items]``: 1 for the last item, ``recency`` for the one before.

    >>> weighted_histories(np.array([[3, 1, 0]]), np.array([2]), 0.5, 4).toarray().tolist()
    [[0.0, 1.0, 0.0, 0.5]]
    """
    steps = np.arange(items.shape[1])
    inside = steps < lengths[:, None]
    weights = recency ** (lengths[:, None] - 1.0 - steps).clip(min=0)
    users = np.broadcast_to(np.arange(len(items))[:, None], items.shape)
    entries = weights[inside].astype(np.float32), (users[inside], items[inside])
    return sp.csr_matrix(entries, shape=(len(items), n_items))


def history_products(samples: Samples, decay: float, n_items: int) -> sp.csr_matrix:
    r"""The Gram matrix :math:`P^\top P` of the histories decayed by distance, CSR ``[n_items, n_items]``, exact.

    >>> samples = Samples(np.array([[1, 0], [1, 2]]), np.array([1, 2]), np.array([2, 3]), np.array([1, 1]))
    >>> history_products(samples, 0.5, n_items=3).toarray().tolist()
    [[0.0, 0.0, 0.0], [0.0, 1.25, 0.5], [0.0, 0.5, 1.0]]
    """
    products = sp.csr_matrix((n_items, n_items))
    for first in range(0, len(samples), SAMPLES_AT_ONCE):
        part = samples[slice(first, first + SAMPLES_AT_ONCE)]
        before = weighted_histories(part.items, part.lengths, decay, n_items).astype(np.float64)
        before.data = np.rint(before.data * PARTS_OF_HISTORIES) / PARTS_OF_HISTORIES
        products = products + before.T @ before
    products.eliminate_zeros()
    return products.tocsr()


def following(samples: Samples, decay: float, n_items: int) -> sp.csr_matrix:
    r"""The histories times what follows them, :math:`P^\top F`, both decayed: CSR ``[n_items, n_items]``, exact.

    A pair of items at distance d stands on both sides of d cuts, and counts :math:`d\,\delta^{d-1}`.
    """
    return transition_counts(samples, lambda distance: distance * decay ** (distance - 1), n_items)


def linear_model(products: sp.csr_matrix, follows: sp.csr_matrix, ridge: float) -> NDArray[np.float32]:
    r"""The regression of the items still to come on those before, ``[n_items, n_items]``, negative entries cut off.

    With the histories :math:`P` and what follows them :math:`F`, both decayed by distance,
    :math:`(P^\top P + \lambda I)^{-1} P^\top F` (Choi et al., WWW 2021, arXiv 2103.16104).

    Args:
        products: :func:`history_products`.
        follows: :func:`following`.
        ridge: :math:`\lambda`.

    >>> samples = Samples(np.array([[1, 0], [1, 2]]), np.array([1, 2]), np.array([2, 3]), np.array([1, 1]))
    >>> given = history_products(samples, 1.0, n_items=4), following(samples, 1.0, n_items=4)
    >>> [round(value, 2) for value in linear_model(*given, ridge=1.0)[2].tolist()]
    [0.0, 0.0, 0.0, 0.2]
    """
    # In place as far as it goes: a gram matrix and a right side of 20,000 items are 1.6 GB each.
    gram = products.astype(np.float32).toarray()
    gram[np.diag_indices(len(gram))] += ridge
    factor = scipy.linalg.cho_factor(gram.T, overwrite_a=True)
    solution = scipy.linalg.cho_solve(factor, follows.astype(np.float32).toarray(order="F"), overwrite_b=True)
    positive: NDArray[np.float32] = np.maximum(solution, 0, dtype=np.float32, order="C")
    return positive
