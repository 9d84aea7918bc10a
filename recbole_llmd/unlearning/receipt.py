"""What a correction did, for the user's records."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from time import perf_counter

import numpy as np
import scipy.sparse as sp

from recbole_llmd.unlearning.mapping.correction import Change, Correction, MappingMatrix
from recbole_llmd.unlearning.request import Request


@dataclass(frozen=True)
class Receipt:
    """The record of one request.

    Attributes:
        request: ``"forget"``, ``"learn"`` or ``"refit"``.
        model, mode: the mapping model and the mode of the engine.
        users, items, values: the interactions removed or added (in the mode "none": asked for): internal ids, and
            their entries of X.
        skipped: pairs of the request that were not in X (forget) or already there (learn); only with ``strict=False``.
        new_users, new_items: how many the model grew by (in the mode "none": was to grow by).
        method: what was done to B, such as ``"low-rank update"`` or ``"refit"``.
        estimates: seconds that the methods to choose from were expected to take (EASE).
        residual, tolerance: how far B is from solving its equations, and what is allowed; None where it is exact.
        notes: what the user should know, such as why B was fitted anew.
        seconds: the correction alone, from the request to the corrected model, without the two hashes.
        hash_seconds: both hashes.
        peak_bytes: memory above what the process held before the correction; None where the system does not tell.
        hash_before, hash_after: SHA-256 of the model's X and B (:func:`fingerprint`); None if the engine does not hash.

    >>> Receipt(request="forget", model="EASE", mode="mapping", users=[2], items=[1], values=[1.0]).skipped
    0
    """

    request: str
    model: str
    mode: str
    users: list[int]
    items: list[int]
    values: list[float]
    skipped: int = 0
    new_users: int = 0
    new_items: int = 0
    method: str = "none"
    estimates: Mapping[str, float] = field(default_factory=dict)
    residual: float | None = None
    tolerance: float | None = None
    notes: Sequence[str] = ()
    seconds: float = 0.0
    hash_seconds: float = 0.0
    peak_bytes: int | None = None
    hash_before: str | None = None
    hash_after: str | None = None

    @classmethod
    def of(cls, request: Request | None, change: Change, correction: Correction, *, model: str, mode: str) -> Receipt:
        """What a correction did for a request (None for a refit); what it took is not in it yet."""
        users, items, values = change.pairs
        return cls(
            request="refit" if request is None else request.kind,
            model=model,
            mode=mode,
            users=users,
            items=items,
            values=values,
            new_users=0 if request is None else len(request.new_users),
            new_items=0 if request is None else len(request.new_items),
            method=correction.method,
            estimates=correction.estimates,
            residual=correction.residual,
            tolerance=correction.tolerance,
            notes=correction.notes,
        )

    def json(self) -> str:
        """The receipt as JSON text."""
        return json.dumps(dataclasses.asdict(self), indent=1)


def fingerprint(X: sp.spmatrix, B: MappingMatrix) -> str:
    """SHA-256 over shape, type and bytes of X (CSR) and B (dense or sparse); equal models have equal fingerprints."""
    digest = hashlib.sha256()
    for matrix in (X, B):
        if sp.issparse(matrix):
            matrix = matrix.tocsr()
            matrix.sort_indices()
            arrays = [matrix.indptr.astype(np.int64), matrix.indices.astype(np.int64), matrix.data]
        else:
            arrays = [np.ascontiguousarray(matrix)]
        digest.update(repr((matrix.shape, str(matrix.dtype))).encode())
        for array in arrays:
            digest.update(array.data)
    return digest.hexdigest()


class TimedFingerprint:
    """:func:`fingerprint` that adds up the ``seconds`` it takes; None at no time if it is switched off.

    >>> hashed = TimedFingerprint(switched_on=False)
    >>> hashed(sp.eye(2), sp.eye(2)) is None, hashed.seconds
    (True, 0.0)
    """

    def __init__(self, switched_on: bool) -> None:
        self.switched_on, self.seconds = switched_on, 0.0

    def __call__(self, X: sp.spmatrix, B: MappingMatrix) -> str | None:
        """The fingerprint of X and B, or None."""
        if not self.switched_on:
            return None
        before = perf_counter()
        text = fingerprint(X, B)
        self.seconds += perf_counter() - before
        return text
