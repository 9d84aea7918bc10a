"""What a correction starts from, what changes, and what it hands back."""

from dataclasses import dataclass, field

import numpy as np
import scipy.sparse as sp


@dataclass(frozen=True)
class State:
    """A fitted mapping model: B [n_items, n_items] belongs to X (CSR [n_users, n_items]).

    ``cache`` is what a module remembers between the corrections of one model: empty at the first, ``{"own": X.shape}``
    after its own ``fit``.
    """

    X: sp.csr_matrix
    B: object
    params: dict
    cache: dict = field(default_factory=dict)


@dataclass(frozen=True)
class Change:
    """X after the change, and where it differs: ``delta`` = X_after - X_before in the rows ``users``."""

    X: sp.csr_matrix
    users: np.ndarray
    items: np.ndarray
    delta: sp.csr_matrix

    @classmethod
    def between(cls, before, after):
        """From X before [n_users, n_items] to X after, of equal shape."""
        delta = (after - before).tocsr()
        delta.eliminate_zeros()
        users = np.flatnonzero(np.diff(delta.indptr))
        return cls(after, users, np.unique(delta.indices), delta[users])


@dataclass(frozen=True)
class Correction:
    """B after the change, and how it was reached.

    Attributes:
        B: the corrected mapping matrix (the array that was given, if corrected in place).
        method: what was done, such as ``"low-rank update"``.
        estimates: seconds that the methods to choose from were expected to take.
        residual: how far B is from solving its equations; at most ``tolerance``. None where B is exact by construction.
        cache: for the next correction.
        notes: what the user should know, such as a refit after drift.
    """

    B: object
    method: str
    estimates: dict = field(default_factory=dict)
    residual: float = None
    tolerance: float = None
    cache: dict = field(default_factory=dict)
    notes: tuple = ()


def gram_rows(X):
    """XᵀX in blocks of few rows, which take little memory however dense it is: yields (first row, CSR block)."""
    transposed, n = X.T.tocsr(), X.shape[1]
    rows = max(1, n // 64)
    for start in range(0, n, rows):
        yield start, transposed[start : start + rows] @ X


def gram(X, dtype):
    """XᵀX as a dense array [n_items, n_items]."""
    G = np.empty((X.shape[1],) * 2, dtype)
    for start, block in gram_rows(X):
        G[start : start + block.shape[0]] = block.toarray()
    return G


def interactions(datasets, shape):
    """All interactions of RecBole datasets over the same users and items: CSR of counts [n_users, n_items]."""
    users, items = (
        np.concatenate([data.inter_feat[field].numpy() for data in datasets])
        for field in (datasets[0].uid_field, datasets[0].iid_field)
    )
    return sp.csr_matrix((np.ones(len(users), np.float32), (users, items)), shape=shape)
