"""Windows for all-position training.

RecBole expands a user's sequence into one training row (history -> next item) per prefix and encodes every prefix
anew. For a causal model one pass over a window of the sequence gives the output of every prefix in it. The windows
built here cover each of RecBole's training rows exactly once, so a window epoch and a row epoch train the same
(history, next item) samples; only histories that reach back before the window's start are shorter.
"""

from dataclasses import dataclass

import numpy as np
import torch
from recbole.data.interaction import Interaction

ROW = "llmd_row"  # field of the training interactions: the number of the row, the key of the teacher cache
TARGETS = "llmd_targets"  # field of a window batch: the next item of every position, 0 where no row ends


@dataclass(frozen=True)
class Windows:
    """Windows over the training sequences.

    Attributes:
        items: item ids, padded with 0 on the right, ``[n_windows, max_len]``.
        rows: the training row whose history ends at this position, -1 where none does, ``[n_windows, max_len]``.
        targets: the next item of that row, 0 where there is none, ``[n_windows, max_len]``.
        lengths: items in each window, ``[n_windows]``.
        users: user ids, ``[n_windows]``.
    """

    items: np.ndarray
    rows: np.ndarray
    targets: np.ndarray
    lengths: np.ndarray
    users: np.ndarray


def samples_of(scorer, interaction):
    """Targets and rows ``[n_samples]`` of a batch of the path on which ``scorer`` scores: windows or rows."""
    if scorer.windows:
        return positions_of(interaction)[1:]
    return interaction[scorer.model.POS_ITEM_ID], interaction[ROW]


def add_row_numbers(dataset):
    """Number the training rows of ``dataset`` in the field :data:`ROW`, so that every batch knows its rows."""
    dataset.inter_feat.update(Interaction({ROW: torch.arange(len(dataset.inter_feat))}))


def positions_of(interaction):
    """Which positions of a window batch end a training row (bool), their targets and their rows."""
    positions = interaction[ROW] >= 0
    return positions, interaction[TARGETS][positions], interaction[ROW][positions]


def build_windows(dataset, overlap=0.0):
    """Cover the rows of a built RecBole ``SequentialDataset`` with windows.

    Args:
        dataset: the training part of a ``SequentialDataset`` (one row per prefix).
        overlap (float): the share of a window, in [0, 1), that repeats the one before as history without loss.

    Returns:
        Windows: every row stands in exactly one window, at the position where its history ends.
    """
    feat = dataset.inter_feat
    history = feat[dataset.item_id_list_field].numpy()
    length = feat[dataset.item_list_length_field].numpy()
    target = feat[dataset.iid_field].numpy()
    user = feat[dataset.uid_field].numpy()
    max_len = history.shape[1]
    stride = max(1, round(max_len * (1 - overlap)))

    order = np.argsort(user, kind="stable")  # a user's rows, in the dataset's order
    starts = np.flatnonzero(~_continues(history[order], length[order], target[order], user[order]))
    pieces = []
    for start, end in zip(starts, np.append(starts[1:], len(order))):
        rows = order[start:end]
        first = length[rows[0]]
        # position p predicts row p - (first - 1); the last target is never an input
        sequence = np.concatenate([history[rows[0], :first], target[rows[:-1]]])
        row_at = np.concatenate([np.full(first - 1, -1, dtype=np.int64), rows])
        for begin, trained_from, stop in _spans(len(sequence), max_len, stride):
            inside = row_at[begin:stop].copy()
            inside[: trained_from - begin] = -1
            if (inside >= 0).any():
                pieces.append((sequence[begin:stop], inside, user[rows[0]]))
    return _stack(pieces, target, max_len)


def _continues(history, length, target, user):
    """Whether each row's history is the row before it of the same user plus that row's target (``[n_rows]``)."""
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


def _spans(n, max_len, stride):
    """(begin, first trained position, stop) of the windows over ``n`` positions, cut from the end: the most recent
    positions stand in full windows, and what is left over makes a short window of the oldest ones."""
    stop = n
    while stop > 0:
        begin = max(0, stop - max_len)
        trained_from = begin + max_len - stride if begin else 0
        yield begin, trained_from, stop
        stop = trained_from


def _stack(pieces, target, max_len):
    items = np.zeros((len(pieces), max_len), dtype=np.int64)
    rows = np.full((len(pieces), max_len), -1, dtype=np.int64)
    lengths = np.array([len(sequence) for sequence, _, _ in pieces], dtype=np.int64)
    for i, (sequence, inside, _) in enumerate(pieces):
        items[i, : len(sequence)] = sequence
        rows[i, : len(sequence)] = inside
    targets = np.where(rows >= 0, target[rows.clip(min=0)], 0) if len(pieces) else items
    return Windows(items, rows, targets, lengths, np.array([user for _, _, user in pieces], dtype=np.int64))


class WindowLoader:
    """Batches of windows with about ``batch_size`` samples each, windows of like length together.

    Each batch is an ``Interaction`` with the user, ``item_id_list`` ``[windows, longest]``, its length, :data:`TARGETS`
    and :data:`ROW`, cut to its longest window: no position is computed for padding alone.
    """

    def __init__(self, windows, config, batch_size, shuffle=True):
        self.windows = windows
        self.batch_size = batch_size
        self.shuffle = shuffle
        self.fields = (
            config["USER_ID_FIELD"],
            config["ITEM_ID_FIELD"] + config["LIST_SUFFIX"],
            config["ITEM_LIST_LENGTH_FIELD"],
        )
        self.generator = np.random.default_rng(config["seed"])
        self.samples = (windows.rows >= 0).sum(axis=1)
        # Sorted by length, any order of the ties gives the same number of batches.
        self._n_batches = len(self._batches(np.argsort(windows.lengths, kind="stable")))

    def seed(self, seed):
        """Make the next epoch's order depend on ``seed`` alone."""
        self.generator = np.random.default_rng(seed)

    def _batches(self, order):
        """Cut ``order`` into batches of at most ``batch_size`` padded positions (one window at least)."""
        size = max(1, self.batch_size)
        batches, batch, longest = [], [], 0
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

    def __len__(self):
        return self._n_batches

    def __iter__(self):
        n = len(self.windows.lengths)
        if not self.shuffle:
            batches = self._batches(np.argsort(self.windows.lengths, kind="stable"))
        else:
            shuffled = self.generator.permutation(n)
            batches = self._batches(shuffled[np.argsort(self.windows.lengths[shuffled], kind="stable")])
            batches = [batches[i] for i in self.generator.permutation(len(batches))]
        return map(self._interaction, batches)

    def _interaction(self, batch):
        longest = self.windows.lengths[batch].max()
        user, items, length = self.fields
        return Interaction(
            {
                user: torch.from_numpy(self.windows.users[batch]),
                items: torch.from_numpy(self.windows.items[batch, :longest]),
                length: torch.from_numpy(self.windows.lengths[batch]),
                TARGETS: torch.from_numpy(self.windows.targets[batch, :longest]),
                ROW: torch.from_numpy(self.windows.rows[batch, :longest]),
            }
        )
