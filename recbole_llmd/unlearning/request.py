"""A request to forget or to learn: everything that the engine needs to answer it, in one object."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

KINDS = ("forget", "learn")


@dataclass(frozen=True, eq=False)
class Request:
    """Interactions to forget or to learn; pair ``n`` is user ``users[n]`` with item ``items[n]``.

    Attributes:
        kind: ``"forget"`` or ``"learn"``.
        users, items: internal ids, int64 ``[n]``.
        values: the entries of X to learn (how often a pair occurs), float64 ``[n]``; None for 1. Nothing to forget has
            any: a pair is forgotten whole.
        new_users, new_items: the tokens of users and items that the model grows by, in the order of their ids.
        strict: whether a pair that is not in X (forget), or already there (learn), is refused; else it is skipped.
    """

    kind: str
    users: NDArray[np.int64] = field(repr=False)
    items: NDArray[np.int64] = field(repr=False)
    values: NDArray[np.float64] | None = field(default=None, repr=False)
    new_users: tuple[str, ...] = ()
    new_items: tuple[str, ...] = ()
    strict: bool = True

    def __len__(self) -> int:
        return len(self.users)
