"""Training sequences: the items of each user in their order, of which RecBole's training samples are the beginnings."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import scipy.sparse as sp
from numpy.typing import NDArray

from recbole_llmd.data.transitions import SAMPLES_AT_ONCE, Samples


@dataclass(frozen=True, eq=False)
class TrainingSequences:
    """The items of each user, oldest first.

    Attributes:
        items: of one user after the other, ``[n_interactions]``.
        starts: where each user's items begin, and the end, ``[n_users + 1]``; by internal user id.
        window: the most items of a history (RecBole's ``MAX_ITEM_LIST_LENGTH``).

    >>> sequences = TrainingSequences.from_lists([[], [5, 6, 7]], window=2)
    >>> sequences.samples().items.tolist(), sequences.samples().targets.tolist()
    ([[5, 0], [5, 6]], [6, 7])
    >>> sequences.without(np.array([1]), np.array([6])).samples().items.tolist()  # it closes up
    [[5, 0]]
    """

    items: NDArray[np.int32] = field(repr=False)
    starts: NDArray[np.int64] = field(repr=False)
    window: int

    @classmethod
    def from_lists(cls, lists: Sequence[Sequence[int]], window: int) -> TrainingSequences:
        """Those given user by user."""
        starts = np.cumsum([0, *map(len, lists)])
        return cls(np.array([item for items in lists for item in items], np.int32), starts, window)

    @classmethod
    def of(cls, samples: Samples, n_users: int) -> TrainingSequences | None:
        """Those whose :meth:`samples` are these; None if there are none such (samples drawn at random).

        Users with less than two items have no sample, and are not known from samples.
        """
        order = np.argsort(samples.users, kind="stable")
        users = samples.users[order]
        begins = np.flatnonzero(np.diff(users, prepend=-1))
        items = np.insert(samples.targets[order], begins, samples.items[order[begins], 0]).astype(np.int32)
        counts = np.bincount(users, minlength=n_users)
        counts[users[begins]] += 1
        sequences = cls(items, np.concatenate([[0], counts.cumsum()]), samples.items.shape[1])
        targets = sequences._targets()
        for first in range(0, len(samples), SAMPLES_AT_ONCE):
            part = slice(first, first + SAMPLES_AT_ONCE)
            given, made = samples[order[part]], sequences._samples_at(targets[part])
            same = np.array_equal(given.lengths, made.lengths) and np.array_equal(given.items, made.items)
            if not same:
                return None
        return sequences

    @property
    def n_users(self) -> int:
        """How many users there are, those without items and RecBole's padding included."""
        return len(self.starts) - 1

    @property
    def lengths(self) -> NDArray[np.int64]:
        """How many items each user has, ``[n_users]``."""
        return np.diff(self.starts)

    def of_user(self, user: int) -> NDArray[np.int32]:
        """The items of one user."""
        return self.items[self.starts[user] : self.starts[user + 1]]

    def samples(self, users: NDArray[np.int64] | None = None) -> Samples:
        """A sample for every item but a user's first, its history before it; those of ``users`` alone if given."""
        targets = self._targets()
        if users is not None:
            targets = targets[np.isin(self._owners()[targets], users)]
        return self._samples_at(targets)

    def without(self, users: NDArray[np.int64], items: NDArray[np.int64]) -> TrainingSequences:
        """The sequences without the pairs of ``users`` ``[n]`` and ``items`` ``[n]``, wherever these occur."""
        stride = max(self.items.max(initial=0), items.max(initial=0)) + 1
        owners = self._owners()
        keep = ~np.isin(owners * stride + self.items, users * stride + items)
        counts = np.bincount(owners[keep], minlength=self.n_users)
        return TrainingSequences(self.items[keep], np.concatenate([[0], counts.cumsum()]), self.window)

    def matrix(self, n_items: int) -> sp.csr_matrix:
        """How often each user has each item, CSR ``[n_users, n_items]``."""
        counts = np.ones(len(self.items), np.float32), self.items, self.starts
        matrix = sp.csr_matrix(counts, shape=(self.n_users, n_items), copy=True)
        matrix.sum_duplicates()
        return matrix

    def _owners(self) -> NDArray[np.int64]:
        """The user of each of the items."""
        return np.repeat(np.arange(self.n_users), self.lengths)

    def _targets(self) -> NDArray[np.int64]:
        """Where the items are that have one before them."""
        has_before = np.ones(len(self.items), bool)
        has_before[self.starts[:-1][self.lengths > 0]] = False
        return np.flatnonzero(has_before)

    def _samples_at(self, targets: NDArray[np.int64]) -> Samples:
        """The samples whose targets are the items at these places."""
        users = np.searchsorted(self.starts, targets, side="right") - 1
        lengths = np.minimum(targets - self.starts[users], self.window)
        items = np.zeros((len(targets), self.window), np.int64)
        for step in range(self.window):
            inside = lengths > step
            items[inside, step] = self.items[(targets - lengths)[inside] + step]
        return Samples(items, lengths, self.items[targets].astype(np.int64), users)


def closed_up(
    samples: Samples, before: TrainingSequences, after: TrainingSequences, users: NDArray[np.int64]
) -> Samples:
    """Validation samples whose histories have, of training items, only those of ``after``.

    What a history has beyond the training sequence stays (interactions of the validation part). The samples of users
    of whom no training item is left go.

    Args:
        samples: the validation samples.
        before: the training sequences that the histories continue.
        after: the training sequences that they are to continue.
        users: whose sequences differ.

    >>> before = TrainingSequences.from_lists([[], [5, 6, 7]], window=2)
    >>> samples = Samples(np.array([[6, 7]]), np.array([2]), np.array([9]), np.array([1]))
    >>> closed_up(samples, before, before.without(np.array([1]), np.array([6])), np.array([1])).items.tolist()
    [[5, 7]]
    """
    items, lengths = samples.items.copy(), samples.lengths.copy()
    window = items.shape[1]
    stays = np.ones(len(samples), bool)
    for row in np.flatnonzero(np.isin(samples.users, users)):
        left = after.of_user(samples.users[row])
        further = _beyond(samples.items[row, : samples.lengths[row]], before.of_user(samples.users[row]), window)
        history = np.concatenate([left, further])[-window:]
        stays[row], lengths[row], items[row] = len(left) > 0, len(history), 0
        items[row, : len(history)] = history
    return Samples(items, lengths, samples.targets, samples.users)[stays]


def _beyond(history: NDArray[np.int64], sequence: NDArray[np.int32], window: int) -> NDArray[np.int64]:
    """The items of a history after those of the sequence that it continues."""
    for further in range(len(history)):
        tail = history[len(history) - further :]
        if np.array_equal(np.concatenate([sequence, tail])[-window:], history):
            return tail
    return history
