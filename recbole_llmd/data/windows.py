"""Windows for all-position training.

RecBole expands a user's sequence into one training sample (history -> next item) per prefix and encodes every prefix
anew. For a causal model one pass over a window of the sequence gives the output of every prefix in it. The windows
built here cover each of RecBole's training samples exactly once, so an epoch over windows and an epoch over samples
train the same (history, next item) pairs; only histories that reach back before the window's beginning are shorter.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from recbole.config import Config
from recbole.data.dataset import SequentialDataset
from recbole.data.interaction import Interaction

SAMPLE = "llmd_sample"  # field of the training interactions: the number of the sample, the key of the teacher cache
TARGETS = "llmd_targets"  # field of a window batch: the next item of every position, 0 where no sample ends

Integers = npt.NDArray[np.int64]
Booleans = npt.NDArray[np.bool_]


@dataclass(frozen=True)
class Windows:
    """Windows over the training sequences.

    Attributes:
        items: item ids, padded with 0 on the right, ``[n_windows, max_len]``.
        samples: the training sample whose history ends at this position, -1 where none does, ``[n_windows, max_len]``.
        targets: the next item of that sample, 0 where there is none, ``[n_windows, max_len]``.
        lengths: items in each window, ``[n_windows]``.
        users: user ids, ``[n_windows]``.

    One user who saw the items 5, 6, 7 has two training samples, (5 -> 6) and (5, 6 -> 7), and one window:

    >>> import numpy as np
    >>> windows = Windows(
    ...     items=np.array([[5, 6, 0]]),
    ...     samples=np.array([[0, 1, -1]]),
    ...     targets=np.array([[6, 7, 0]]),
    ...     lengths=np.array([2]),
    ...     users=np.array([1]),
    ... )
    >>> windows.n_samples
    2
    """

    items: Integers
    samples: Integers
    targets: Integers
    lengths: Integers
    users: Integers

    @property
    def n_samples(self) -> int:
        """The number of training samples in the windows."""
        return int((self.samples >= 0).sum())


def number_samples(dataset: SequentialDataset) -> None:
    """Number the training samples of ``dataset`` in the field :data:`SAMPLE`, so that every batch knows its samples."""
    dataset.inter_feat.update(Interaction({SAMPLE: torch.arange(len(dataset.inter_feat))}))


def positions_of(batch: Interaction) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Where the samples of a window batch end, and which they are.

    Returns:
        tuple: the positions at which a sample's history ends, bool, ``[windows, longest]``; the samples' targets and
        their numbers, both ``[n_samples]`` in row-major order of the positions.

    >>> batch = {SAMPLE: torch.tensor([[-1, 7], [2, -1]]), TARGETS: torch.tensor([[0, 5], [6, 0]])}
    >>> positions, targets, numbers = positions_of(batch)
    >>> targets.tolist(), numbers.tolist()
    ([5, 6], [7, 2])
    """
    positions = batch[SAMPLE] >= 0
    return positions, batch[TARGETS][positions], batch[SAMPLE][positions]


def build_windows(dataset: SequentialDataset, overlap: float = 0.0) -> Windows:
    """Cover the samples of a built RecBole ``SequentialDataset`` with windows.

    Args:
        dataset: the training part of a ``SequentialDataset`` (one sample per prefix).
        overlap: the share of a window, in [0, 1), that repeats the one before as history without loss.

    Returns:
        Windows: every sample stands in exactly one window, at the position where its history ends.
    """
    feat = dataset.inter_feat
    history = feat[dataset.item_id_list_field].numpy()
    length = feat[dataset.item_list_length_field].numpy()
    target = feat[dataset.iid_field].numpy()
    user = feat[dataset.uid_field].numpy()
    max_len = history.shape[1]
    stride = max(1, round(max_len * (1 - overlap)))

    order = np.argsort(user, kind="stable")  # a user's samples, in the dataset's order
    firsts = np.flatnonzero(~_continues(history[order], length[order], target[order], user[order]))
    pieces = []
    for first, end in zip(firsts, np.append(firsts[1:], len(order))):
        samples = order[first:end]
        n_before = length[samples[0]]
        # position p predicts sample p - (n_before - 1); the last target is never an input
        sequence = np.concatenate([history[samples[0], :n_before], target[samples[:-1]]])
        sample_at = np.concatenate([np.full(n_before - 1, -1, dtype=np.int64), samples])
        for begin, trained_from, stop in _spans(len(sequence), max_len, stride):
            trained = sample_at[begin:stop].copy()
            trained[: trained_from - begin] = -1
            if (trained >= 0).any():
                pieces.append(_Piece(sequence[begin:stop], trained, user[samples[0]]))
    return _stack(pieces, target, max_len)


@dataclass(frozen=True)
class _Piece:
    """One window before padding: its items, the samples that end at them, its user."""

    items: Integers
    samples: Integers
    user: int


def _continues(history: Integers, length: Integers, target: Integers, user: Integers) -> Booleans:
    """Whether each sample's history is that of the sample before it, of the same user, plus that sample's target
    (``[n_samples]``).
    """
    if not len(user):
        return np.zeros(0, dtype=bool)
    max_len = history.shape[1]
    before, n = history[:-1], length[:-1]
    full = n == max_len
    expected = before.copy()
    expected[full, :-1] = before[full, 1:]
    expected[np.arange(len(before)), np.where(full, max_len - 1, n)] = target[:-1]
    same = (user[1:] == user[:-1]) & (length[1:] == np.minimum(n + 1, max_len)) & (expected == history[1:]).all(axis=1)
    return np.concatenate([[False], same])


def _spans(n: int, max_len: int, stride: int) -> Iterator[tuple[int, int, int]]:
    """(begin, first trained position, stop) of the windows over ``n`` positions, cut from the end: the most recent
    positions stand in full windows, and what is left over makes a short window of the oldest ones.
    """
    stop = n
    while stop > 0:
        begin = max(0, stop - max_len)
        trained_from = begin + max_len - stride if begin else 0
        yield begin, trained_from, stop
        stop = trained_from


def _stack(pieces: list[_Piece], target: Integers, max_len: int) -> Windows:
    items = np.zeros((len(pieces), max_len), dtype=np.int64)
    samples = np.full((len(pieces), max_len), -1, dtype=np.int64)
    lengths = np.array([len(piece.items) for piece in pieces], dtype=np.int64)
    for i, piece in enumerate(pieces):
        items[i, : len(piece.items)] = piece.items
        samples[i, : len(piece.items)] = piece.samples
    targets = np.where(samples >= 0, target[samples.clip(min=0)], 0) if len(pieces) else items
    return Windows(items, samples, targets, lengths, np.array([piece.user for piece in pieces], dtype=np.int64))


class WindowLoader:
    """Batches of windows with about ``batch_size`` samples each, windows of like length together.

    Each batch is an ``Interaction`` with the user, ``item_id_list`` ``[windows, longest]``, its length, :data:`TARGETS`
    and :data:`SAMPLE`, cut to its longest window: no position is computed for padding alone.

    Args:
        windows: the windows.
        config: names the fields as the models know them; its ``seed`` is that of the first order.
        batch_size: positions in a batch, padding included.
        shuffle: whether every pass over the loader has another order.

    >>> import numpy as np
    >>> items, lengths = np.array([[5, 6, 7], [8, 0, 0]]), np.array([3, 1])
    >>> samples, targets = np.array([[0, 1, 2], [3, -1, -1]]), np.array([[6, 7, 9], [5, 0, 0]])
    >>> fields = {
    ...     "USER_ID_FIELD": "user_id",
    ...     "ITEM_ID_FIELD": "item_id",
    ...     "LIST_SUFFIX": "_list",
    ...     "ITEM_LIST_LENGTH_FIELD": "item_length",
    ... }
    >>> windows = Windows(items, samples, targets, lengths, users=np.array([1, 2]))
    >>> loader = WindowLoader(windows, {**fields, "seed": 1}, batch_size=3, shuffle=False)
    >>> [batch["item_id_list"].tolist() for batch in loader]
    [[[8]], [[5, 6, 7]]]
    """

    def __init__(
        self, windows: Windows, config: Config | dict[str, Any], batch_size: int, shuffle: bool = True
    ) -> None:
        self.windows = windows
        self.batch_size = batch_size
        self.shuffle = shuffle
        self.fields = (
            config["USER_ID_FIELD"],
            config["ITEM_ID_FIELD"] + config["LIST_SUFFIX"],
            config["ITEM_LIST_LENGTH_FIELD"],
        )
        self.generator = np.random.default_rng(config["seed"])
        # Sorted by length, any order of the ties gives the same number of batches.
        self._n_batches = len(self._batches(np.argsort(windows.lengths, kind="stable")))

    def seed(self, seed: int) -> None:
        """Make the next epoch's order depend on ``seed`` alone."""
        self.generator = np.random.default_rng(seed)

    def unshuffled(self) -> WindowLoader:
        """A loader of the same windows by length, always in one order."""
        other = copy.copy(self)
        other.shuffle = False
        return other

    def over(self, windows: Windows, batch_size: int) -> WindowLoader:
        """A loader like this one of other windows."""
        other = copy.copy(self)
        other.windows, other.batch_size = windows, batch_size
        other._n_batches = len(other._batches(np.argsort(windows.lengths, kind="stable")))
        return other

    def _batches(self, order: Integers) -> list[Integers]:
        """Cut ``order`` into batches of at most ``batch_size`` padded positions (one window at least)."""
        size = max(1, self.batch_size)
        batches: list[Integers] = []
        batch: list[int] = []
        longest = 0
        for window in order:
            longest_with = max(longest, self.windows.lengths[window])
            if batch and longest_with * (len(batch) + 1) > size:
                batches.append(np.array(batch))
                batch, longest_with = [], self.windows.lengths[window]
            batch.append(window)
            longest = longest_with
        if batch:
            batches.append(np.array(batch))
        return batches

    def __len__(self) -> int:
        return self._n_batches

    def __iter__(self) -> Iterator[Interaction]:
        n_windows = len(self.windows.lengths)
        if not self.shuffle:
            batches = self._batches(np.argsort(self.windows.lengths, kind="stable"))
        else:
            shuffled = self.generator.permutation(n_windows)
            batches = self._batches(shuffled[np.argsort(self.windows.lengths[shuffled], kind="stable")])
            batches = [batches[i] for i in self.generator.permutation(len(batches))]
        return map(self._interaction, batches)

    def _interaction(self, batch: Integers) -> Interaction:
        longest = self.windows.lengths[batch].max()
        user, items, length = self.fields
        return Interaction(
            {
                user: torch.from_numpy(self.windows.users[batch]),
                items: torch.from_numpy(self.windows.items[batch, :longest]),
                length: torch.from_numpy(self.windows.lengths[batch]),
                TARGETS: torch.from_numpy(self.windows.targets[batch, :longest]),
                SAMPLE: torch.from_numpy(self.windows.samples[batch, :longest]),
            }
        )
