"""Which items a change leaves without any connection to others: B is exactly zero between them."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import scipy.sparse as sp
from numpy.typing import NDArray
from scipy.sparse.csgraph import connected_components


@dataclass(frozen=True)
class Separation:
    """Items that no chain of users and items connects with the most popular one.

    Attributes:
        items: their ids, ascending.
        labels: the component of every item [n_items]; two items are connected if theirs are equal.

    >>> X = sp.csr_matrix([[1, 1, 0, 0, 0], [1, 1, 0, 0, 0], [0, 0, 1, 1, 0]])  # nobody has item 4
    >>> separated = separation(X, np.array([1, 3, 4]))
    >>> separated.items.tolist(), separated.labels.tolist(), separated.alone.tolist()
    ([2, 3, 4], [0, 0, 1, 1, 2], [4])
    """

    items: NDArray[np.int64]
    labels: NDArray[np.int64]

    @property
    def alone(self) -> NDArray[np.int64]:
        """Those of ``items`` that are connected with no other item: nobody has them, or nobody who has another."""
        sizes = np.bincount(self.labels)
        alone: NDArray[np.int64] = self.items[sizes[self.labels[self.items]] == 1]
        return alone


def separation(X: sp.csr_matrix, items: NDArray[np.int64]) -> Separation:
    """The items concerned if ``items`` were connected with one another and X [n_users, n_items] is what remains.

    Whatever was connected with ``items`` still is with one of them. Mostly all of them share a user with the most
    popular item, or with an item that does, which is quick to see; the components are computed only where one does not.
    """
    most_popular = int(np.bincount(X.indices, minlength=X.shape[1]).argmax())
    connected, beyond = np.zeros(X.shape[1], bool), np.array([most_popular])
    connected[most_popular] = True
    for _ in range(2):
        theirs = X[_users_of(X, beyond)]
        connected[theirs[theirs @ connected > 0].indices] = True
        beyond = items[~connected[items]]
        if not len(beyond):
            return Separation(np.zeros(0, np.int64), np.zeros(X.shape[1], np.int64))
    labels = _components(X)[1]
    apart = np.isin(labels, np.setdiff1d(labels[items], labels[most_popular]))
    return Separation(np.flatnonzero(apart), labels)


def _users_of(X: sp.csr_matrix, items: NDArray[np.int64]) -> NDArray[np.int64]:
    """The users who have one of ``items``."""
    wanted = np.zeros(X.shape[1], bool)
    wanted[items] = True
    return np.unique(np.searchsorted(X.indptr, np.flatnonzero(wanted[X.indices]), side="right") - 1)


def user_components(X: sp.csr_matrix) -> NDArray[np.int64]:
    """The component of every user [n_users]; one who has nothing is one of their own.

    >>> user_components(sp.csr_matrix([[1, 1, 0], [0, 0, 0], [0, 1, 0], [0, 0, 1]])).tolist()
    [0, 1, 0, 2]
    """
    return _components(X)[0]


def _components(X: sp.csr_matrix) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """The component of every user and item in the graph whose edges are the interactions X, each numbered from 0."""
    n_users, n_items = X.shape
    indptr = np.append(X.indptr, np.full(n_items, X.indptr[-1]))
    graph = sp.csr_matrix((np.ones(X.nnz, np.int8), X.indices + n_users, indptr), shape=(n_users + n_items,) * 2)
    labels = connected_components(graph, directed=False)[1]
    of_users, of_items = (
        np.unique(part, return_inverse=True)[1].astype(np.int64) for part in (labels[:n_users], labels[n_users:])
    )
    return of_users, of_items
