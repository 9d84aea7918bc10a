"""What a correction works on, what changes, and what it hands back."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol, TypeAlias

import numpy as np
import scipy.sparse as sp
from numpy.typing import DTypeLike, NDArray

from recbole_llmd.unlearning.mapping.corrected_matrix import CorrectedMatrix, ImplicitMatrix

if TYPE_CHECKING:
    from recbole.data.dataset import Dataset

# NDArray, a SciPy sparse matrix or an ImplicitMatrix, as RecBole's model has it: [n_items, n_items], or of users
# (:func:`axis`).
MappingMatrix: TypeAlias = Any


@dataclass(frozen=True)
class FittedMapping:
    """A fitted mapping model: B [n_items, n_items] belongs to X (CSR [n_users, n_items]).

    ``cache`` is what a module remembers between the corrections of one model: empty at the first,
    ``{"exact_for": X.shape}`` after the module's ``fit``.

    >>> from recbole_llmd.unlearning.mapping import ease
    >>> X, params = sp.csr_matrix([[1.0, 1, 0], [1, 1, 1]]), {"reg_weight": 1.0}
    >>> fitted = FittedMapping(X, ease.fit(X, params), params)
    >>> after = sp.csr_matrix([[1.0, 1, 0], [1, 1, 0]])  # the second user forgets the last item
    >>> change = Change(after, users=np.array([1]), items=np.array([2]), delta=(after - X)[[1]])
    >>> corrected = ease.correct(fitted, change, tolerance=1e-5)
    >>> bool(np.allclose(explicit(corrected.B), ease.fit(after, params)))
    True
    """

    X: sp.csr_matrix
    B: MappingMatrix
    params: Mapping[str, Any]
    cache: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Change:
    """X after the change, and where it differs.

    Attributes:
        X: CSR [n_users, n_items] after the change.
        users, items: ids of those concerned, ascending.
        delta: X after - X before in the rows ``users``, CSR [len(users), n_items].

    >>> before, after = sp.csr_matrix([[1.0, 0], [0, 2], [1, 1]]), sp.csr_matrix([[1.0, 0], [0, 0], [1, 1]])
    >>> change = Change(after, users=np.array([1]), items=np.array([1]), delta=(after - before)[[1]])
    >>> change.pairs  # user 1 had item 1 twice
    ([1], [1], [2.0])
    """

    X: sp.csr_matrix
    users: NDArray[np.int64]
    items: NDArray[np.int64]
    delta: sp.csr_matrix

    @classmethod
    def none(cls, X: sp.csr_matrix) -> Change:
        """X as it stays."""
        nobody = np.zeros(0, np.int64)
        return cls(X, nobody, nobody, X[nobody])

    @property
    def owners(self) -> NDArray[np.int64]:
        """The user of every entry of ``delta``."""
        return np.repeat(self.users, np.diff(self.delta.indptr))

    @property
    def pairs(self) -> tuple[list[int], list[int], list[float]]:
        """The users, items and entries of X that were removed or added."""
        return self.owners.tolist(), self.delta.indices.tolist(), np.abs(self.delta.data).tolist()


@dataclass(frozen=True)
class Correction:
    """B after the change, and how it was reached.

    Attributes:
        B: the corrected mapping matrix; the one that was given is not written.
        method: what was done, such as ``"low-rank update"``.
        estimates: seconds that the methods to choose from were expected to take, and the ``rank`` of the change.
        residual: how far B is from solving its equations; at most ``tolerance``. None where B is exact by construction.
        cache: for the next correction.
        notes: what the user should know, such as why it was fitted anew.

    >>> from recbole_llmd.unlearning.mapping import ease
    >>> X, params = sp.csr_matrix([[1.0, 1, 0], [1, 1, 1]]), {"reg_weight": 1.0}
    >>> B = ease.fit(X, params, "float64")
    >>> correction = ease.correct(FittedMapping(X, B, params), Change.none(X), tolerance=1e-10)
    >>> bool((correction.B.folded() == B).all()), correction.residual <= correction.tolerance
    (True, True)
    """

    B: MappingMatrix
    method: str
    estimates: Mapping[str, float] = field(default_factory=dict)
    residual: float | None = None
    tolerance: float | None = None
    cache: Mapping[str, Any] = field(default_factory=dict)
    notes: Sequence[str] = ()


class MappingModel(Protocol):
    """What a module of a mapping model offers: functions over NumPy and SciPy arrays alone.

    A module whose corrections wait beside B has ``fold(B, X, params, tolerance)``, too, which gives the
    :class:`Correction` with B written; one whose B solves equations has ``error_of(B, X, params, profiles)``, by which
    :func:`~recbole_llmd.unlearning.erasure.verify.verify` finds what B still knows (see ``ease.py``).
    """

    @property
    def PARAMETERS(self) -> tuple[str, ...]:
        """The keys of RecBole's Config that ``params`` holds."""

    @property
    def MATRIX(self) -> str:
        """The attribute of RecBole's model that holds B."""

    @property
    def TOLERANCE(self) -> dict[str, float]:
        """The residual allowed, by dtype of B."""

    @property
    def REQUIRED(self) -> dict[str, Any]:
        """The parameters that must have one value."""

    def fit(self, X: sp.csr_matrix, params: Mapping[str, Any], dtype: DTypeLike = ...) -> MappingMatrix:
        """B of the interactions X [n_users, n_items], as RecBole's model defines it."""

    def correct(self, fitted: FittedMapping, change: Change, tolerance: float) -> Correction:
        """B after a change of X. It writes nothing that it is given: others may be reading it."""

    def trained_on(self, stored: Mapping[str, Any], X: sp.csr_matrix, params: Mapping[str, Any]) -> bool:
        """Whether what RecBole's checkpoint stored of the model can come from the interactions X."""

    def derived(self, X: sp.csr_matrix, B: MappingMatrix, params: Mapping[str, Any]) -> dict[str, Any]:
        """What the model keeps beside X and B: its other attributes by name."""


def holds_interactions(stored: Mapping[str, Any], X: sp.csr_matrix) -> bool:
    """:meth:`MappingModel.trained_on` where RecBole's checkpoint has the interactions themselves."""
    before = sp.csr_matrix(stored["interaction_matrix"])
    return bool(before.shape == X.shape and (before != X).nnz == 0)


def axis(params: Mapping[str, Any]) -> int:
    """The axis of X whose entities B relates: items (1), or users (0) where a neighbourhood model is fitted by users.

    >>> axis({"k": 5, "knn_method": "user"}), axis({"reg_weight": 1.0})
    (0, 1)
    """
    return 0 if params.get("knn_method") == "user" else 1


def explicit(B: MappingMatrix) -> MappingMatrix:
    """B as an array or a SciPy sparse matrix, for whoever compares its entries.

    >>> explicit(np.eye(2)).tolist()
    [[1.0, 0.0], [0.0, 1.0]]
    """
    B = B.folded() if isinstance(B, CorrectedMatrix) else B
    return B.toarray() if isinstance(B, ImplicitMatrix) else B


def padded(B: MappingMatrix, new_items: int) -> MappingMatrix:
    """B with rows and columns of zeros for new items (or users): what models give one without interactions."""
    if not new_items:
        return B
    n = B.shape[0] + new_items
    if sp.issparse(B):
        B = B.copy()
        B.resize(n, n)
        return B
    B = B.folded() if isinstance(B, CorrectedMatrix) else B
    if isinstance(B, ImplicitMatrix):
        return B.grown(new_items)
    larger = np.zeros((n, n), B.dtype)
    larger[:-new_items, :-new_items] = B
    return larger


def gram_rows(X: sp.csr_matrix) -> Iterator[tuple[int, sp.csr_matrix]]:
    """XᵀX in blocks of few rows, which take little memory however dense it is: yields (first row, CSR block)."""
    transposed, n = X.T.tocsr(), X.shape[1]
    height = max(1, n // 64)
    for first in range(0, n, height):
        yield first, transposed[first : first + height] @ X


def gram(X: sp.csr_matrix, dtype: DTypeLike) -> NDArray[Any]:
    """XᵀX as a dense array [n_items, n_items]."""
    G = np.empty((X.shape[1],) * 2, dtype)
    for first, block in gram_rows(X):
        G[first : first + block.shape[0]] = block.toarray()
    return G


def interactions(datasets: Sequence[Dataset], shape: tuple[int, int]) -> sp.csr_matrix:
    """All interactions of RecBole datasets over the same users and items: CSR of counts [n_users, n_items]."""
    users, items = (
        np.concatenate([data.inter_feat[field].numpy() for data in datasets])
        for field in (datasets[0].uid_field, datasets[0].iid_field)
    )
    return sp.csr_matrix((np.ones(len(users), np.float32), (users, items)), shape=shape)
