"""A request to forget or to learn: everything that the engine needs to answer it, in one object."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import numpy as np
import scipy.sparse as sp
from numpy.typing import ArrayLike, NDArray

from recbole_llmd.errors import RequestError
from recbole_llmd.unlearning.mapping.correction import Change
from recbole_llmd.unlearning.mapping.sparse_rows import Rows, running, with_entries, with_parts

KINDS = ("forget", "learn")
LARGEST_COUNT = 2**24  # up to which float32, the type of RecBole's X, has every whole number


@dataclass(frozen=True, eq=False)
class Request:
    """Interactions to forget or to learn; pair ``n`` is user ``users[n]`` with item ``items[n]``.

    Attributes:
        kind: ``"forget"`` or ``"learn"``.
        users, items: internal ids, int64 ``[n]``. Repeated pairs count once; with values, these must agree.
        values: the entries of X to learn (how often a pair occurs), float64 ``[n]``; None for 1. Nothing to forget has
            any: a pair is forgotten whole.
        new_users, new_items: the tokens of users and items that the model grows by, in the order of their ids.
        strict: whether a pair that is not in X (forget), or already there (learn), is refused; else it is skipped.

    Raises:
        RequestError: if the kind is unknown, ids are not whole numbers, or the lengths or values do not fit.

    >>> request = Request("forget", [4, 2, 4], [1, 3, 1])
    >>> len(request), len(request.distinct())
    (3, 2)
    >>> request.distinct().users.tolist(), request.distinct().items.tolist()
    ([2, 4], [3, 1])
    """

    kind: str
    users: NDArray[np.int64] = field(repr=False)
    items: NDArray[np.int64] = field(repr=False)
    values: NDArray[np.float64] | None = field(default=None, repr=False)
    new_users: tuple[str, ...] = ()
    new_items: tuple[str, ...] = ()
    strict: bool = True

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise RequestError(f"kind = {self.kind!r}: expected one of " + ", ".join(map(repr, KINDS)) + ".")
        users, items = _internal_ids("users", self.users), _internal_ids("items", self.items)
        if not isinstance(self.strict, bool):
            raise RequestError(f"strict = {self.strict!r}: expected True or False.")
        if len(users) != len(items):
            raise RequestError(
                f"{len(users)} users and {len(items)} items: pairs need as many of one as the other. "
                f"To forget all of a user or an item, use forget_users or forget_items."
            )
        if self.kind == "forget" and (self.values is not None or self.new_users or self.new_items):
            raise RequestError(
                "forget: a pair is forgotten whole, so that values, new_users and new_items are for learn."
            )
        for name in ("new_users", "new_items"):
            if not isinstance(getattr(self, name), tuple):
                raise RequestError(f"{name} = {getattr(self, name)!r}: expected a tuple of tokens (strings).")
        object.__setattr__(self, "users", users)
        object.__setattr__(self, "items", items)
        if self.values is not None:
            object.__setattr__(self, "values", _counts(self.values, len(users)))

    def __len__(self) -> int:
        return len(self.users)

    def subset(self, chosen: NDArray[np.bool_] | NDArray[np.int64]) -> Request:
        """The request over the ``chosen`` pairs alone (a mask or positions)."""
        values = None if self.values is None else self.values[chosen]
        return replace(self, users=self.users[chosen], items=self.items[chosen], values=values)

    def distinct(self) -> Request:
        """The request with each pair once, ordered by user and item."""
        pairs = self.users * (self.items.max(initial=0) + 1) + self.items
        _, first, number = np.unique(pairs, return_index=True, return_inverse=True)
        if self.values is not None:
            differs = np.flatnonzero(self.values[first][number] != self.values)
            if len(differs):
                raise RequestError(
                    f"values = {self.values[first][number][differs[0]]:g} and {self.values[differs[0]]:g} for the same "
                    "pair of a user and an item: a pair has one entry of X, how often it occurs. Give the pair once."
                )
        return self.subset(first)

    def grown(self, X: sp.csr_matrix) -> sp.csr_matrix:
        """X with empty rows and columns for the new users and items."""
        if not self.new_users and not self.new_items:
            return X
        X = X.copy()
        X.resize(X.shape[0] + len(self.new_users), X.shape[1] + len(self.new_items))
        return X

    def applies_to(self, X: sp.csr_matrix) -> NDArray[np.bool_]:
        """Which pairs ``[n]`` can be answered: those in X (forget) or not yet in X (learn). X is already grown."""
        present: NDArray[np.bool_] = entries_of(X, self.users, self.items) != 0
        return present if self.kind == "forget" else ~present

    def change(self, X: sp.csr_matrix) -> Change:
        """What the request changes in X, which is already grown. Every pair must apply, and only once."""
        order = np.lexsort((self.items, self.users))
        items = self.items[order]
        users, row = np.unique(self.users[order], return_inverse=True)
        rows, n = Rows.of(X, users), X.shape[1]
        if self.kind == "forget":
            values = np.zeros(len(self))
            delta = -rows.data[np.searchsorted(rows.numbers * n + rows.indices, row * n + items)]
        else:
            values = np.ones(len(self)) if self.values is None else self.values[order]
            delta = values
        after = with_entries(rows, n, row, items, values.astype(X.dtype))
        changed = Rows(delta, items.astype(X.indices.dtype), running(np.bincount(row, minlength=len(users))))
        X = with_parts(X, [(users, after)])
        return Change(X=X, users=users, items=np.unique(items), delta=changed.matrix(n, X.dtype))


def pairs_of(X: sp.csr_matrix, rows: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """All pairs in these ``rows`` of X: the row [n] and the column [n] of each."""
    found = Rows.of(X, rows)
    return np.repeat(rows, found.lengths), found.indices.astype(np.int64)


def _internal_ids(name: str, given: ArrayLike) -> NDArray[np.int64]:
    try:
        ids = np.asarray(given)
    except ValueError:  # lists of several lengths
        ids = np.asarray(given, object)
    if ids.ndim != 1 or (ids.size and not np.issubdtype(ids.dtype, np.integer)):
        raise RequestError(
            f"{name}: expected internal ids, a list of whole numbers; here they have the type {ids.dtype} and the "
            f"shape {ids.shape}. Tokens are for Unlearner.forget and learn."
        )
    return ids.astype(np.int64)


def _counts(given: ArrayLike, number: int) -> NDArray[np.float64]:
    try:
        values = np.atleast_1d(np.asarray(given, np.float64))
    except (TypeError, ValueError):
        values = np.full(number, np.nan)
    if (
        values.shape != (number,)
        or not (values > 0).all()
        or (values != np.rint(values)).any()
        or (values > LARGEST_COUNT).any()
    ):
        raise RequestError(
            f"values: expected {number} whole numbers above 0 and up to {LARGEST_COUNT:,}, one per pair (how often it "
            "occurs). Leave values out for 1 each."
        )
    return values


def entries_of(X: sp.csr_matrix, users: NDArray[np.int64], items: NDArray[np.int64]) -> NDArray[np.floating]:
    """X at the pairs [n]."""
    return np.asarray(X[users, items]).ravel() if len(users) else np.zeros(0, X.dtype)
