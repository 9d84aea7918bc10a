"""Which data a model was trained on: internal ids and interactions mean nothing without the file they come from.

RecBole numbers users and items in the order in which its data file names them. A model that was trained before the rows
of that file moved has other people under the same numbers, and nothing in RecBole's checkpoints tells.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from os import PathLike
from typing import TYPE_CHECKING, Any

import numpy as np
import scipy.sparse as sp
import torch

if TYPE_CHECKING:
    from recbole.data.dataset import Dataset

KEY = "data_identity"  # in checkpoints
NEW_TOKENS = "new_tokens"  # in checkpoints: tokens by field that the data files do not have


@dataclass(frozen=True)
class DataIdentity:
    """The tokens of a dataset in the order of their internal ids, and a hash of them and the interactions.

    Attributes:
        users, items: the tokens of the internal ids 0, 1, ... (0 is RecBole's padding).
        sha256: over both and the training interactions, as hexadecimal digits; None for a model that has forgotten
            some: by a hash of before, whoever has the model could try which.

    >>> X = sp.csr_matrix([[0, 0, 0], [0, 1, 0], [0, 1, 1]])
    >>> def identity_of(users, X=X):
    ...     tokens = {"user_id": users, "item_id": ["[PAD]", "alien", "big"]}
    ...     dataset = SimpleNamespace(uid_field="user_id", iid_field="item_id", field2id_token=tokens)
    ...     return DataIdentity.of(dataset, X)
    >>> from types import SimpleNamespace
    >>> trained_on = identity_of(["[PAD]", "ann", "bob"])
    >>> trained_on.mismatch(DataIdentity.from_dict(trained_on.as_dict())) is None
    True
    >>> trained_on.mismatch(identity_of(["[PAD]", "bob", "ann"]))
    "user 1 (internal id) was 'ann' and is 'bob'"
    >>> trained_on.mismatch(identity_of(["[PAD]", "ann", "bob"], X=2 * X))
    'the training interactions are others'
    """

    users: tuple[str, ...] = field(repr=False)
    items: tuple[str, ...] = field(repr=False)
    sha256: str | None

    @classmethod
    def of(cls, dataset: Dataset, X: sp.spmatrix | None = None) -> DataIdentity:
        """The identity of RecBole's training ``dataset``; ``X`` [n_users, n_items] are its interactions, if at hand.

        Tokens that :func:`add_tokens` added are no part of it: the data files do not have them.
        """
        users, items = (
            tuple(map(str, dataset.field2id_token[name][: _count_in_files(dataset, name)]))
            for name in (dataset.uid_field, dataset.iid_field)
        )
        X = sp.csr_matrix(dataset.inter_matrix(form="csr") if X is None else X, copy=True)
        X.resize(len(users), len(items))
        X.sum_duplicates()
        X.eliminate_zeros()
        digest = hashlib.sha256()
        for tokens in (users, items):
            for token in tokens:
                encoded = token.encode()
                digest.update(len(encoded).to_bytes(8, "little") + encoded)
        for array in (X.indptr.astype(np.int64), X.indices.astype(np.int64), X.data.astype(np.float64)):
            digest.update(array.tobytes())
        return cls(users, items, digest.hexdigest())

    def as_dict(self) -> dict[str, list[str] | str | None]:
        """Plain types, for files that need nothing of this package to be read."""
        return {"users": list(self.users), "items": list(self.items), "sha256": self.sha256}

    @classmethod
    def from_dict(cls, plain: Mapping[str, Any]) -> DataIdentity:
        """The inverse of :meth:`as_dict`."""
        return cls(tuple(plain["users"]), tuple(plain["items"]), plain["sha256"])

    def without_interactions(self) -> DataIdentity:
        """The identity of the numbering of users and items alone."""
        return replace(self, sha256=None)

    def mismatch(self, other: DataIdentity) -> str | None:
        """How the ``other`` data differ, in one sentence without its full stop; None if they are the same."""
        for kind, mine, theirs in (("user", self.users, other.users), ("item", self.items, other.items)):
            if len(mine) != len(theirs):
                return f"there were {len(mine) - 1} {kind}s and are {len(theirs) - 1}"
            for number, (before, now) in enumerate(zip(mine, theirs)):
                if before != now:
                    return f"{kind} {number} (internal id) was {before!r} and is {now!r}"
        same = self.sha256 is None or self.sha256 == other.sha256
        return None if same else "the training interactions are others"


def add_tokens(dataset: Dataset, field: str, tokens: Sequence[str]) -> None:
    """Let ``dataset`` know ``tokens`` that its files do not have, as the next internal ids of ``field``."""
    for target, entries in added_tokens(dataset, {field: tokens}):
        target.update(entries)


def added_tokens(dataset: Dataset, tokens: Mapping[str, Sequence[str]]) -> list[tuple[dict[str, Any], dict[str, Any]]]:
    """What :func:`add_tokens` does for several fields: dictionaries, and what each is to be updated with."""
    names = dataset.field2id_token
    counts = {**getattr(dataset, "counts_in_files", {}), **{name: _count_in_files(dataset, name) for name in tokens}}
    updates: list[tuple[dict[str, Any], dict[str, Any]]] = [(vars(dataset), {"counts_in_files": counts})]
    for name, added in tokens.items():
        first = len(names[name])
        updates.append((dataset.field2token_id[name], {token: first + i for i, token in enumerate(added)}))
        updates.append((names, {name: np.append(names[name], added) if len(added) else names[name]}))
    return updates


def _count_in_files(dataset: Dataset, field: str) -> int:
    """How many tokens of ``field`` are those of the data files (and RecBole's padding): the first ones."""
    return int(getattr(dataset, "counts_in_files", {}).get(field, len(dataset.field2id_token[field])))


def add_identity(checkpoint: str | PathLike[str], identity: DataIdentity) -> None:
    """Write the identity of a model's training data into the checkpoint file that RecBole has just written."""
    content = torch.load(checkpoint, map_location="cpu", weights_only=False)
    content[KEY] = identity.as_dict()
    torch.save(content, checkpoint, pickle_protocol=4)
