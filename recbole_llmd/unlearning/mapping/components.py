"""Which items a change leaves without any connection to others: B is exactly zero between them.

Users and items are the nodes of a graph, interactions its edges. A spanning tree remembers that all is connected: a
change that takes no edge of it separates nothing, and for the few edges that it takes others are found nearby. Only
where there is none are the components of the whole graph computed.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import scipy.sparse as sp
from numpy.typing import NDArray
from scipy.sparse.csgraph import breadth_first_order, connected_components

from recbole_llmd.unlearning.mapping.correction import Change
from recbole_llmd.unlearning.mapping.sparse_rows import Rows

NONE = -1  # the parent of a node that is not in the tree


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
        if not len(self.items):
            return self.items
        sizes = np.bincount(self.labels)
        alone: NDArray[np.int64] = self.items[sizes[self.labels[self.items]] == 1]
        return alone


def separation(X: sp.csr_matrix, items: NDArray[np.int64]) -> Separation:
    """The items concerned if ``items`` were connected with one another and X [n_users, n_items] is what remains.

    Whatever was connected with ``items`` still is with one of them.
    """
    labels = _components(X)[1]
    apart = np.isin(labels, np.setdiff1d(labels[items], labels[_most_popular(X)]))
    return Separation(np.flatnonzero(apart), labels)


@dataclass(frozen=True, eq=False)
class SpanningTree:
    """A tree of interactions over the users and items that are connected with the most popular item.

    Attributes:
        root: that item, as a node: users are the nodes from 0, items those from ``n_users``.
        parents: the node before each on its way to the root, [n_users + n_items]; ``NONE`` outside of the tree.
        n_users: the number of users.

    >>> X = sp.csr_matrix([[1, 1, 0], [1, 1, 0], [0, 1, 1]])
    >>> tree = SpanningTree.of(X)
    >>> tree.parents.tolist()  # the root is item 1, node 4; item 0 hangs on user 0
    [4, 4, 4, 0, 4, 2]
    >>> after = sp.csr_matrix([[0, 0, 0], [1, 1, 0], [0, 1, 1]])
    >>> tree.after(Change(after, np.array([0]), np.array([0, 1]), (after - X)[[0]])).parents.tolist()
    [-1, 4, 4, 1, 4, 2]
    """

    root: int
    parents: NDArray[np.int32]
    n_users: int

    @classmethod
    def of(cls, X: sp.csr_matrix) -> SpanningTree:
        """The tree of shortest ways."""
        n_users, root = X.shape[0], X.shape[0] + _most_popular(X)
        order, before = breadth_first_order(_graph(X), root, directed=False)
        parents = np.full(sum(X.shape), NONE, np.int32)
        parents[order] = before[order]
        parents[root] = root
        return cls(root, parents, n_users)

    def after(self, change: Change) -> SpanningTree | None:
        """A tree of what was connected with the root, and of what is learned; None if there may be none any more."""
        X, delta = change.X, change.delta
        edges = np.stack([change.owners, delta.indices + self.n_users], axis=1)
        gone = edges[delta.data < 0].tolist()
        parents = self.parents.copy()
        lost = [node for edge in gone for node, other in (edge, edge[::-1]) if parents[node] == other]
        parents[lost] = NONE
        tree = SpanningTree(self.root, parents, self.n_users)
        if any(item == self.root for _, item in gone) and not len(tree._neighbours(X, self.root)):
            return None
        if not tree._connect(X, lost):
            return None
        tree._connect_new(edges[delta.data > 0].tolist())
        return tree

    def _connect(self, X: sp.csr_matrix, lost: list[int]) -> bool:
        """Give the nodes that were ``lost`` another parent; whether there is one for all but users who have nothing."""
        waiting = {node: self._neighbours(X, node) for node in lost}
        if any(not len(neighbours) for node, neighbours in waiting.items() if node >= self.n_users):
            return False
        waiting = {node: neighbours for node, neighbours in waiting.items() if len(neighbours)}
        while waiting:
            found = {node: self._parent(neighbours) for node, neighbours in waiting.items()}
            if all(parent == NONE for parent in found.values()):
                return False
            for node, parent in found.items():
                if parent != NONE:
                    self.parents[node] = parent
                    del waiting[node]
        return True

    def _connect_new(self, edges: list[list[int]]) -> None:
        """Hang nodes that are not in the tree on those that are, where ``edges`` connect them."""
        for edge in edges + edges:  # a user by one item, and then by the user the others
            for node, other in (edge, edge[::-1]):
                if self.parents[node] == NONE != self.parents[other]:
                    self.parents[node] = other

    def _parent(self, neighbours: NDArray[np.int64]) -> int:
        """One of the neighbours from which there is a way to the root, or ``NONE``."""
        for neighbour in neighbours.tolist():
            node = neighbour
            while node not in (self.root, NONE):
                node = int(self.parents[node])
            if node == self.root:
                return int(neighbour)
        return NONE

    def _neighbours(self, X: sp.csr_matrix, node: int) -> NDArray[np.int64]:
        """The nodes with which a node shares an edge."""
        if node < self.n_users:
            items: NDArray[np.int64] = X.indices[X.indptr[node] : X.indptr[node + 1]] + self.n_users
            return items
        entries = np.flatnonzero(X.indices == node - self.n_users)
        return np.searchsorted(X.indptr, entries, side="right") - 1


def separated_by(tree: SpanningTree | None, X: sp.csr_matrix, change: Change) -> tuple[Separation, SpanningTree]:
    """What a change separates of the items that those concerned had, and a tree of what is left.

    Args:
        tree: of X, if there is one already.
        X: the interactions before the change, [n_users, n_items].
        change: the change.
    """
    if tree is None or (tree.n_users, len(tree.parents)) != (X.shape[0], sum(X.shape)):
        tree = SpanningTree.of(X)
    items = np.unique(Rows.of(X, change.users).indices)
    after = tree.after(change) if (tree.parents[tree.n_users + items] != NONE).all() else None
    if after is None:
        return separation(change.X, items), SpanningTree.of(change.X)
    return Separation(np.zeros(0, np.int64), np.zeros(X.shape[1], np.int64)), after


def user_components(X: sp.csr_matrix) -> NDArray[np.int64]:
    """The component of every user [n_users]; one who has nothing is one of their own.

    >>> user_components(sp.csr_matrix([[1, 1, 0], [0, 0, 0], [0, 1, 0], [0, 0, 1]])).tolist()
    [0, 1, 0, 2]
    """
    return _components(X)[0]


def _components(X: sp.csr_matrix) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """The component of every user and item, each numbered from 0."""
    labels = connected_components(_graph(X), directed=False)[1]
    of_users, of_items = (
        np.unique(part, return_inverse=True)[1].astype(np.int64)
        for part in (labels[: X.shape[0]], labels[X.shape[0] :])
    )
    return of_users, of_items


def _graph(X: sp.csr_matrix) -> sp.csr_matrix:
    """The graph whose edges are the interactions X, users before items."""
    n_users, n_items = X.shape
    indptr = np.append(X.indptr, np.full(n_items, X.indptr[-1]))
    ones = np.ones(X.nnz, np.int8)
    return sp.csr_matrix((ones, X.indices + n_users, indptr), shape=(n_users + n_items,) * 2)


def _most_popular(X: sp.csr_matrix) -> int:
    return int(np.bincount(X.indices, minlength=X.shape[1]).argmax())
