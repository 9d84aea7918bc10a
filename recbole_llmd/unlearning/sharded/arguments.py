"""What a user gives a model that is divided among processes, checked without communication."""

from __future__ import annotations

from numbers import Integral, Real
from typing import Any

import numpy as np
import scipy.sparse as sp
from numpy.typing import ArrayLike, DTypeLike, NDArray

from recbole_llmd.errors import DataError, RequestError, SettingsError
from recbole_llmd.unlearning.mapping.ease import TOLERANCE
from recbole_llmd.unlearning.request import Request


def checked_model(
    X: sp.csr_matrix, weight: float, dtype: DTypeLike, size: int
) -> tuple[sp.csr_matrix, float, np.dtype[Any]]:
    """X in canonical form, λ and the dtype, for so many processes.

    Raises:
        DataError: if X is no sparse matrix of finite numbers, or too small.
        SettingsError: if λ or the dtype cannot be one.
    """
    if isinstance(weight, bool) or not isinstance(weight, Real) or not 0 < float(weight) < np.inf:
        raise SettingsError(f"reg_weight = {weight!r}: must be a number above 0.")
    try:
        known = np.dtype(dtype)
    except TypeError:
        known = np.dtype(object)
    if known.name not in TOLERANCE:
        raise SettingsError(f"dtype = {dtype!r}: expected one of {', '.join(TOLERANCE)}.")
    if not sp.issparse(X):
        raise DataError(f"X = {type(X).__name__}: expected a SciPy sparse matrix [n_users, n_items].")
    X = sp.csr_matrix(X, copy=True)
    X = X if np.issubdtype(X.dtype, np.floating) else X.astype(np.float32)
    X.sum_duplicates()
    X.eliminate_zeros()
    if not np.isfinite(X.data).all():
        raise DataError("X has entries that are no finite numbers. Count how often each user has each item.")
    if X.shape[1] < max(size, 2):
        raise DataError(f"X has {X.shape[1]} items for {size} processes: there must be as many, and an item beside 0.")
    return X, float(weight), known


def checked_ids(kind: str, given: ArrayLike, count: int) -> NDArray[np.int64]:
    """Internal ids [n] of users or items (``kind``), of which X has ``count``, the padding included.

    Raises:
        RequestError: if they are no list of whole numbers, or one is unknown.
    """
    try:
        ids = np.atleast_1d(np.asarray(given))
    except ValueError:  # lists of several lengths
        ids = np.zeros((0, 0))
    if ids.ndim != 1 or (ids.size and not np.issubdtype(ids.dtype, np.integer)):
        raise RequestError(f"{kind}s = {str(given)[:80]}: expected internal ids, a list of whole numbers.")
    wrong = ids[(ids < 1) | (ids >= count)]
    if len(wrong):
        raise RequestError(
            f"{kind} = {wrong[0]}: X does not have it; expected an internal id from 1 to {count - 1} (0 is RecBole's "
            "padding). New ones need a model of a larger X."
        )
    return ids.astype(np.int64)


def checked_pairs(request: Request, X: sp.csr_matrix) -> tuple[Request, NDArray[np.bool_]]:
    """The request with each pair once, and which of its pairs apply.

    Raises:
        RequestError: if one does not, and the request is strict.
    """
    pairs = request.distinct()
    applies = pairs.applies_to(X)
    if request.strict and not applies.all():
        wrong, where = pairs.subset(~applies), "not" if request.kind == "forget" else "already"
        raise RequestError(
            f"{len(wrong)} of {len(pairs)} pairs to {request.kind} are {where} in X; the first: user {wrong.users[0]}, "
            f"item {wrong.items[0]} (internal ids). Leave them out, or skip such (strict=False)."
        )
    return pairs, applies


def checked_k(k: object, n: int) -> None:
    """Refuse a length of lists of ``n`` items, the padding included.

    Raises:
        RequestError: saying which fit.
    """
    if isinstance(k, bool) or not isinstance(k, Integral) or not 1 <= int(k) < n:
        raise RequestError(f"k = {k!r}: must be a whole number from 1 to {n - 1}, the number of items.")
