"""Synthetic histories: what a teacher can be asked about besides the histories that both sides were trained on.

On these a teacher says what it has memorised; and they are few. A synthetic history is a training sequence from which
items are dropped, or one in which items are replaced by neighbours of theirs, or one that goes on with neighbours of
its last item, as the histories do that a model is served for, or a single item.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from recbole.data.dataset import SequentialDataset
from recbole.data.interaction import Interaction

from recbole_llmd.data.transitions import Samples

KINDS = ("dropped", "replaced", "continued", "single")
DROPPED = 0.3  # share of the items
REPLACED = 1 / 3
CONTINUED = 2  # items at most


@dataclass(frozen=True)
class Neighbours:
    """Items that can stand for an item.

    Attributes:
        items: of each item, ``[n_items, k]``.
        weights: how often each is drawn, in proportion, ``[n_items, k]``.

    >>> neighbours = Neighbours(np.array([[0], [2], [1]]), np.ones((3, 1)))
    >>> neighbours.drawn(np.array([1, 2]), np.random.default_rng(1)).tolist()
    [2, 1]
    """

    items: NDArray[np.int64]
    weights: NDArray[np.floating]

    def drawn(self, items: NDArray[np.int64], generator: np.random.Generator) -> NDArray[np.int64]:
        """One neighbour of each of ``items`` ``[n]``, ``[n]``."""
        cumulative = self.weights[items].cumsum(1, dtype=np.float64)
        points = generator.random(len(items)) * cumulative[:, -1]
        chosen = (cumulative <= points[:, None]).sum(1).clip(max=cumulative.shape[1] - 1)
        drawn: NDArray[np.int64] = self.items[items, chosen]
        return drawn


def training_sequences(samples: Samples) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Each user's whole training sequence, the latest items where it is longer than a history may be.

    Returns:
        tuple: item ids, right-padded, ``[n_users, length]``, and their number, ``[n_users]``.

    >>> samples = Samples(np.array([[1, 0], [1, 2]]), np.array([1, 2]), np.array([2, 3]), np.array([1, 1]))
    >>> [array.tolist() for array in training_sequences(samples)]
    [[[2, 3]], [2]]
    """
    order = np.argsort(samples.users, kind="stable")
    last = order[np.append(samples.users[order][1:] != samples.users[order][:-1], True)]
    items, lengths, most = samples.items[last].copy(), samples.lengths[last], samples.items.shape[1]
    full = lengths == most
    items[full, :-1] = items[full, 1:]
    lengths = np.minimum(lengths + 1, most)
    items[np.arange(len(last)), lengths - 1] = samples.targets[last]
    return items, lengths


def draw_histories(
    items: NDArray[np.int64],
    lengths: NDArray[np.int64],
    neighbours: Neighbours,
    n: int,
    generator: np.random.Generator,
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """``n`` synthetic histories of sequences drawn with replacement, a quarter of each of the :data:`KINDS`.

    Args:
        items: the training sequences, right-padded, ``[n_users, length]``.
        lengths: the number of their items, ``[n_users]``.
        neighbours: what items are replaced by, and sequences go on with.
        n: how many to draw.
        generator: of all draws.

    Returns:
        tuple: item ids, right-padded, ``[n, length]``, and their number, ``[n]``, at least 1.

    >>> pair = Neighbours(np.array([[0], [2], [1]]), np.ones((3, 1)))
    >>> drawn, counts = draw_histories(np.array([[1, 2, 1]]), np.array([3]), pair, 100, np.random.default_rng(1))
    >>> drawn.shape, sorted(set(counts.tolist()))
    ((100, 3), [1, 2, 3])
    """
    source = generator.integers(len(items), size=n)
    kind = generator.integers(len(KINDS), size=n)
    drawn, counts = items[source], lengths[source]
    continued = kind == KINDS.index("continued")
    for _ in range(CONTINUED):
        drawn[continued], counts[continued] = _one_more(drawn[continued], counts[continued], neighbours, generator)
        continued &= generator.random(n) < 0.5
    steps = np.arange(items.shape[1])
    inside = steps < counts[:, None]

    single = kind == KINDS.index("single")
    drawn[single, 0] = generator.integers(1, len(neighbours.items), size=single.sum())
    inside[single] = steps == 0

    replaced = inside & (kind == KINDS.index("replaced"))[:, None] & (generator.random(drawn.shape) < REPLACED)
    drawn[replaced] = neighbours.drawn(drawn[replaced], generator)

    kept = inside & ((kind != KINDS.index("dropped"))[:, None] | (generator.random(drawn.shape) >= DROPPED))
    none = ~kept.any(1)
    kept[none, counts[none] - 1] = True  # the last item is always there
    order = np.argsort(~kept, axis=1, kind="stable")
    counts = kept.sum(1)
    return np.where(steps < counts[:, None], np.take_along_axis(drawn, order, 1), 0), counts


def _one_more(
    items: NDArray[np.int64], lengths: NDArray[np.int64], neighbours: Neighbours, generator: np.random.Generator
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """The histories, each with a neighbour of its last item after it; a full one loses its first item."""
    items, rows = items.copy(), np.arange(len(items))
    following = neighbours.drawn(items[rows, lengths - 1], generator)
    full = lengths == items.shape[1]
    items[full, :-1] = items[full, 1:]
    lengths = np.minimum(lengths + 1, items.shape[1])
    items[rows, lengths - 1] = following
    return items, lengths


def as_dataset(
    dataset: SequentialDataset, items: NDArray[np.int64], lengths: NDArray[np.int64], sample_field: str
) -> tuple[SequentialDataset, Samples]:
    """Every prefix of histories as a sample of a RecBole dataset, numbered; the last ones have an arbitrary target.

    Args:
        dataset: the training dataset, whose fields and items are taken.
        items: histories, right-padded, ``[n, length]``.
        lengths: the number of their items, ``[n]``.
        sample_field: the field of the samples' numbers.
    """
    row = np.repeat(np.arange(len(items)), lengths)
    length = np.arange(len(row)) - np.repeat(lengths.cumsum() - lengths, lengths) + 1
    prefixes = np.where(np.arange(items.shape[1]) < length[:, None], items[row], 0)
    following = np.append(items, np.zeros((len(items), 1), np.int64), axis=1)[row, length]
    samples = Samples(prefixes, length, np.maximum(following, 1), row)
    other = copy.copy(dataset)
    fields = {
        dataset.uid_field: samples.users,
        dataset.item_id_list_field: samples.items,
        dataset.item_list_length_field: samples.lengths,
        dataset.iid_field: samples.targets,
        sample_field: np.arange(len(samples)),
    }
    other.inter_feat = Interaction({field: torch.from_numpy(values) for field, values in fields.items()})
    return other, samples
