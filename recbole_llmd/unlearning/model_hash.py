"""Hashes of a model's X and B: whole, and carried on from one request to the next."""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Iterable
from time import perf_counter
from typing import Any

import numpy as np
import scipy.sparse as sp
from numpy.typing import NDArray

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
        self._sums = SumsOfX(sp.csr_matrix((0, 0)))

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
        self._set(change.X, B, self._timed(lambda: self._carried_on(change, B)))
        return self.of(change.X, B)

    def _carried_on(self, change: Change, B: MappingMatrix) -> str:
        """A hash of what X and B are now, by vectors of all their entries: none of the changed pairs alone."""
        self._sums = self._sums.after(change, before=self._of[0])
        vectors = [self._sums.values]
        vectors.append(B.diagonal if isinstance(B, CorrectedMatrix) else B @ _drawn(B.shape[1]).astype(B.dtype))
        digest = hashlib.sha256(f"{self._known or ''} {change.X.shape}".encode())
        for vector in vectors:
            digest.update(np.ascontiguousarray(vector).data)
        return digest.hexdigest()

    def _timed(self, hashing: Any) -> str:
        started = perf_counter()
        text: str = hashing()
        self.seconds += perf_counter() - started
        return text

    def _set(self, X: sp.csr_matrix, B: MappingMatrix, text: str) -> None:
        self._known, self._of = text, (X, B)


class SumsOfX:
    """Xᵀr [n_items] for fixed whole numbers r, which is exact, however it was reached, where X has whole numbers.

    >>> before, after = sp.csr_matrix([[1.0, 0], [0, 2], [1, 1]]), sp.csr_matrix([[1.0, 0], [0, 0], [1, 1]])
    >>> change = Change(after, users=np.array([1]), items=np.array([1]), delta=(after - before)[[1]])
    >>> bool((SumsOfX(before).after(change, before).values == SumsOfX(after).values).all())
    True
    """

    def __init__(self, X: sp.csr_matrix, values: NDArray[np.float64] | None = None) -> None:
        self.X = X
        self.values: NDArray[np.float64] = X.T @ _drawn(X.shape[0]) if values is None else values

    def after(self, change: Change, before: Any) -> SumsOfX:
        """The sums of X after a change of the X ``before``."""
        if self.X is not before or self.X.shape != change.X.shape:
            return SumsOfX(change.X)
        delta, values = change.delta, self.values.copy()
        np.add.at(values, delta.indices, delta.data * _drawn(change.X.shape[0])[change.owners])
        return SumsOfX(change.X, values)


@functools.lru_cache(maxsize=2)
def _drawn(n: int) -> NDArray[np.float64]:
    """Whole numbers, drawn once: sums of products with counts are exact."""
    numbers = np.random.default_rng(0).integers(-(2**20), 2**20, n).astype(np.float64)
    numbers.flags.writeable = False
    return numbers
