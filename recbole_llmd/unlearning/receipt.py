"""What a correction did, for the user's records."""

import dataclasses
import hashlib
import json
from dataclasses import dataclass

import numpy as np
import scipy.sparse as sp


@dataclass(frozen=True)
class Receipt:
    """The record of one request.

    Attributes:
        request: ``"forget"``, ``"learn"`` or ``"refit"``.
        model, mode: the mapping model and the mode of the engine.
        users, items, values: the interactions removed or added: internal ids, and their entries of X.
        skipped: pairs of the request that were not in X (forget) or already there (learn); only with ``strict=False``.
        new_users, new_items: how many the model grew by.
        method: what was done to B, such as ``"low-rank update"`` or ``"refit"``.
        estimates: seconds that the methods to choose from were expected to take (EASE).
        residual, tolerance: how far B is from solving its equations, and what is allowed; None where it is exact.
        notes: what the user should know, such as a refit after drift.
        seconds: the correction alone, from the request to the corrected model, without the two hashes.
        hash_seconds: both hashes.
        peak_bytes: memory above what the process held before the correction; None where the system does not tell.
        hash_before, hash_after: SHA-256 of the model's X and B (:func:`fingerprint`); None if the engine does not hash.
    """

    request: str
    model: str
    mode: str
    users: list
    items: list
    values: list
    skipped: int = 0
    new_users: int = 0
    new_items: int = 0
    method: str = "none"
    estimates: dict = None
    residual: float = None
    tolerance: float = None
    notes: tuple = ()
    seconds: float = 0.0
    hash_seconds: float = 0.0
    peak_bytes: int = None
    hash_before: str = None
    hash_after: str = None

    def json(self):
        """The receipt as JSON text."""
        return json.dumps(dataclasses.asdict(self), indent=1)


def fingerprint(X, B):
    """SHA-256 over shape, type and bytes of X (CSR) and B (dense or sparse); equal models have equal fingerprints."""
    digest = hashlib.sha256()
    for matrix in (X, B):
        if sp.issparse(matrix):
            matrix = matrix.tocsr()
            matrix.sort_indices()
            parts = matrix.indptr.astype(np.int64), matrix.indices.astype(np.int64), matrix.data
        else:
            parts = (np.ascontiguousarray(matrix),)
        digest.update(repr((matrix.shape, str(matrix.dtype))).encode())
        for part in parts:
            digest.update(part.data)
    return digest.hexdigest()
