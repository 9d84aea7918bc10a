"""Hashes of a model's X and B: whole, and carried on from one request to the next."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from time import perf_counter
from typing import Any

import numpy as np
import scipy.sparse as sp

from recbole_llmd.unlearning.mapping.corrected_matrix import CorrectedMatrix, ImplicitMatrix
from recbole_llmd.unlearning.mapping.correction import Change, MappingMatrix
from recbole_llmd.unlearning.mapping.threads import in_parallel

BLOCK_BYTES = 1 << 22


def fingerprint(X: sp.spmatrix, B: MappingMatrix) -> str:
    """SHA-256 over shape, type and bytes of X (CSR) and B (dense, sparse or implicit); equal models have equal ones.

    The bytes are hashed in blocks of 4 MiB, and then the blocks' hashes.
    """
    return hash_of([X, B.folded() if isinstance(B, CorrectedMatrix) else B])


def hash_of(matrices: Iterable[Any]) -> str:
    """SHA-256 over shape, type and bytes of matrices, as :func:`fingerprint` takes them."""
    digest = hashlib.sha256()
    for matrix in matrices:
        if sp.issparse(matrix):
            matrix = matrix.tocsr()
            matrix.sort_indices()
            arrays = [matrix.indptr.astype(np.int64), matrix.indices.astype(np.int64), matrix.data]
        elif isinstance(matrix, ImplicitMatrix):
            arrays = list(matrix.arrays)
        else:
            arrays = [np.ascontiguousarray(matrix)]
        digest.update(repr((matrix.shape, str(matrix.dtype))).encode())
        for array in arrays:
            digest.update(_in_blocks(array))
    return digest.hexdigest()


def _in_blocks(array: np.ndarray[Any, Any]) -> bytes:
    content = memoryview(array.reshape(-1).view(np.uint8).data)
    starts = range(0, len(content), BLOCK_BYTES)
    digests = [b""] * len(starts)

    def hash_blocks(numbers: Iterable[int]) -> None:
        for number in numbers:  # hashlib lets the other threads run meanwhile
            block = content[starts[number] : starts[number] + BLOCK_BYTES]
            digests[number] = hashlib.sha256(block).digest()

    if len(digests) > 1:
        in_parallel(hash_blocks, range(len(digests)))
    else:
        hash_blocks(range(len(digests)))
    return b"".join(digests)


class ModelHash:
    """The hash of an engine's model, and the seconds spent on it.

    A model's first hash is its :func:`fingerprint`. While a correction waits beside B, or touches a sparse B in a few
    places, the next one is made of the one before and of sums over X and B (of EASE, the diagonal of P): it names the
    model among those that this engine made. Where B was written whole it is the fingerprint again.

    >>> X, B = sp.csr_matrix([[0, 0], [0, 1.0]]), np.zeros((2, 2))
    >>> hashed = ModelHash()
    >>> hashed.of(X, B) == fingerprint(X, B)
    True
    """

    def __init__(self, known: str | None = None) -> None:
        self.seconds = 0.0
        self._of: tuple[object, object] = (None, None)
        self._known = known

    def known_for(self, X: sp.csr_matrix, B: MappingMatrix) -> None:
        """Take the hash that this object was made with for that of X and B."""
        self._of = (X, B)

    def of(self, X: sp.csr_matrix, B: MappingMatrix) -> str:
        """The hash of the model with X and B."""
        if self._known is None or self._of[0] is not X or self._of[1] is not B:
            self._set(X, B, self._timed(lambda: fingerprint(X, B)))
        assert self._known is not None
        return self._known

    def after(self, change: Change, B: MappingMatrix) -> str:
        """The hash of the model after a change, with its corrected B."""
        if not (sp.issparse(B) or isinstance(B, CorrectedMatrix)):
            return self.of(change.X, B)
        self._set(change.X, B, self._timed(lambda: _carried_on(self._known or "", change, B)))
        return self.of(change.X, B)

    def _timed(self, hashing: Any) -> str:
        started = perf_counter()
        text: str = hashing()
        self.seconds += perf_counter() - started
        return text

    def _set(self, X: sp.csr_matrix, B: MappingMatrix, text: str) -> None:
        self._known, self._of = text, (X, B)


def _carried_on(before: str, change: Change, B: MappingMatrix) -> str:
    """A hash of what X and B are now, of vectors made of all their entries: none of the pairs that changed alone."""
    X, draw = change.X, np.random.default_rng(0)
    vectors = [X.T @ draw.standard_normal(X.shape[0]).astype(X.dtype)]
    vectors.append(B.diagonal if isinstance(B, CorrectedMatrix) else B @ draw.standard_normal(B.shape[1]))
    digest = hashlib.sha256(f"{before} {X.shape}".encode())
    for vector in vectors:
        digest.update(np.ascontiguousarray(vector).data)
    return digest.hexdigest()
