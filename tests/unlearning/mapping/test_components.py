"""What a change separates, against components found by following the interactions one by one."""

import numpy as np
import pytest
import scipy.sparse as sp

from recbole_llmd.unlearning.mapping import components
from recbole_llmd.unlearning.mapping.components import NONE, SpanningTree, separated_by
from recbole_llmd.unlearning.request import Request


def reachable(X: sp.csr_matrix, item: int) -> set[int]:
    """The items that a chain of users and items connects with ``item``."""
    dense, found, waiting = X.toarray() > 0, {item}, [item]
    while waiting:
        for user in np.flatnonzero(dense[:, waiting.pop()]):
            new = set(np.flatnonzero(dense[user]).tolist()) - found
            found |= new
            waiting += new
    return found


def hold(tree: SpanningTree, X: sp.csr_matrix) -> None:
    """The tree's edges are interactions of X, and every node in it has a way to the root."""
    for node, parent in enumerate(tree.parents.tolist()):
        if node == tree.root or parent == NONE:
            continue
        user, item = min(node, parent), max(node, parent) - tree.n_users
        assert user < tree.n_users and X[user, item] > 0
        steps = 0
        while node != tree.root:
            node, steps = int(tree.parents[node]), steps + 1
            assert node != NONE and steps <= len(tree.parents)


@pytest.mark.parametrize("seed", range(12))
def test_random_requests_separate_what_naive_search_says(seed: int) -> None:
    draw = np.random.default_rng(seed)
    X = sp.csr_matrix((draw.random((14, 12)) < 0.17).astype(np.float32))
    tree: SpanningTree | None = None
    for _ in range(60):
        present = np.argwhere((X.toarray() > 0) == (draw.random() < 0.6))
        if not len(present):
            continue
        pairs = present[draw.permutation(len(present))[: draw.integers(1, 5)]]
        if draw.random() < 0.3:  # a user whole
            pairs = present[present[:, 0] == pairs[0, 0]]
        kind = "forget" if X[pairs[0, 0], pairs[0, 1]] else "learn"
        change = Request(kind, pairs[:, 0], pairs[:, 1]).change(X)
        popular = int(np.bincount(change.X.indices, minlength=X.shape[1]).argmax())
        owned = set(X[change.users].indices.tolist())
        separated, tree = separated_by(tree, X, change)
        X = change.X
        hold(tree, X)
        connected = reachable(X, popular)
        if len(separated.items):
            apart = owned - connected
            assert apart <= set(separated.items.tolist())
            assert set(separated.items.tolist()) == set().union(*(reachable(X, item) for item in apart))
            for item in separated.items.tolist():
                same = {int(other) for other in np.flatnonzero(separated.labels == separated.labels[item])}
                assert same == reachable(X, item)
            assert separated.alone.tolist() == [i for i in separated.items.tolist() if reachable(X, i) == {i}]
        else:  # whatever the user had is in one piece, apart from what it was apart from before
            pieces = {frozenset(reachable(X, item)) for item in owned}
            assert len(pieces) <= 1


def test_a_user_at_the_end_of_a_way_leaves_without_a_search(monkeypatch: pytest.MonkeyPatch) -> None:
    X = sp.csr_matrix(np.array([[1, 1, 0, 0], [1, 1, 1, 0], [0, 0, 1, 1], [0, 1, 1, 1]], np.float32))
    _, tree = separated_by(None, X, Request("forget", [0], [0]).change(X))
    monkeypatch.setattr(components, "_components", None)
    for kind, users, items in (("forget", [0, 0], [0, 1]), ("learn", [0], [3]), ("forget", [3, 3, 3], [1, 2, 3])):
        change = Request(kind, users, items).change(X)
        separated, tree = separated_by(SpanningTree.of(X), X, change)
        assert not len(separated.items) and not len(separated.alone)
        hold(tree, change.X)


def test_the_last_user_of_an_item_separates_it() -> None:
    X = sp.csr_matrix(np.array([[1, 1, 0], [1, 1, 1], [1, 1, 0]], np.float32))
    separated, tree = separated_by(None, X, Request("forget", [1], [2]).change(X))
    assert separated.items.tolist() == separated.alone.tolist() == [2]
    assert tree.parents[tree.n_users + 2] == NONE
