"""What a dense correction would cost, from rates measured on this machine."""

from __future__ import annotations

import functools
from collections.abc import Callable
from time import perf_counter
from typing import Any

import numpy as np
import scipy.sparse as sp
from numpy.typing import DTypeLike, NDArray
from scipy.linalg import lapack

from recbole_llmd.unlearning.mapping.threads import in_parallel


def cholesky_inverse(G: NDArray[Any]) -> None:
    """Invert the symmetric positive definite C-ordered ``G`` [n, n] in place; only its upper triangle is then valid.

    n³ operations, against 8/3·n³ of ``numpy.linalg.inv``.

    Raises:
        numpy.linalg.LinAlgError: if G is not positive definite.
    """
    factor, inverse = lapack.get_lapack_funcs(("potrf", "potri"), (G,))
    # Transposed, a C-ordered array is what LAPACK works on without a copy; its lower triangle is our upper one.
    _, info = factor(G.T, lower=1, overwrite_a=1, clean=0)
    if not info:
        _, info = inverse(G.T, lower=1, overwrite_c=1)
    if info:
        raise np.linalg.LinAlgError(f"X'X + λI is not positive definite (LAPACK info = {info}).")


def _seconds(function: Callable[[], object]) -> float:
    before = perf_counter()
    function()
    return perf_counter() - before


@functools.cache
def rates(dtype: str) -> dict[str, float]:
    """Rates of this machine for ``dtype``, measured once per process (a fraction of a second).

    Returns:
        Operations per second of a ``product`` of dense matrices with a short inner dimension, of a ``sparse``
        with a dense matrix, of a float64 ``system`` of equations and of a Cholesky ``inverse`` (n³ of them); ``bytes``
        per second of an in-place pass over a large array by all threads.
    """
    n, itemsize = 768, np.dtype(dtype).itemsize
    A = np.random.default_rng(0).random((n, n)).astype(dtype)
    S = sp.random(n, n, 0.02, format="csr", dtype=np.dtype(dtype), random_state=0)
    wide = np.zeros((16, (1 << 22) // itemsize), dtype)
    wider, identity = A.astype(np.float64), np.eye(256)
    calls: dict[str, Callable[[], object]] = {  # the passes first: threads of BLAS wait busily for a while
        "bytes": lambda: in_parallel(lambda lines: [np.add(line, 1, out=line) for line in lines], wide),
        "product": lambda: A[:, :64] @ A[:64],
        "system": lambda: np.linalg.inv(wider[:256, :256] + 256 * identity) @ wider[:256],
        "sparse": lambda: S @ A,
        "inverse": lambda: cholesky_inverse(A @ A.T + n * np.eye(n, dtype=dtype)),
    }
    amounts = {
        "product": 2 * 64 * n**2,
        "system": _system_operations(n, 256),
        "sparse": 2 * n * S.nnz,
        "inverse": n**3,
        "bytes": 2 * wide.nbytes,
    }
    # The fastest of five: what else runs on the machine only adds to a time.
    return {name: amounts[name] / min(_seconds(call) for _ in range(5)) for name, call in calls.items()}


def _system_operations(n: int, rank: int) -> int:
    return 2 * n * rank**2 + 2 * rank**3


def low_rank_seconds(n: int, rank: int, entries: int, dtype: DTypeLike) -> float:
    """Expected seconds of a rank-``rank`` update of an [n, n] matrix from factors with ``entries`` entries.

    The factors times the matrix (sparse), the rank x rank system with n right-hand sides (in float64), the product of
    n²·rank, and the passes over the matrix that adding it, scaling and probing need.
    """
    rate = rates(str(np.dtype(dtype)))
    return (
        2 * n * entries / rate["sparse"]
        + _system_operations(n, rank) / rate["system"]
        + 2 * n * n * rank / rate["product"]
        + 5 * n * n * np.dtype(dtype).itemsize / rate["bytes"]
    )


def dual_update_seconds(n_users: int, n_items: int, rank: int, dtype: DTypeLike) -> float:
    """Expected seconds of a rank-``rank`` update of EASE's dual [n_users, n_users], and of writing it.

    Three products of the factors with the dual (two refine the first), a rank x rank system with n_items right-hand
    sides, and another with n_users of twice the rank.
    """
    rate = rates(str(np.dtype(dtype)))
    return (
        2 * n_users**2 * rank * 5 / rate["product"]
        + (_system_operations(n_items, rank) + _system_operations(n_users, 2 * rank)) / rate["system"]
        + 3 * n_users**2 * np.dtype(dtype).itemsize / rate["bytes"]
    )


def dual_refit_seconds(n_users: int, entries: int, dtype: DTypeLike) -> float:
    """Expected seconds of a fit of EASE's dual on X of so many entries: Cholesky, and the diagonal of P."""
    return refit_seconds(n_users, dtype) + 2 * n_users * entries / rates(str(np.dtype(dtype)))["sparse"]


def refit_seconds(n: int, dtype: DTypeLike) -> float:
    """Expected seconds of a fit by Cholesky: n³ operations; Gram matrix, mirror, scale, check and store are passes."""
    rate = rates(str(np.dtype(dtype)))
    return n**3 / rate["inverse"] + 10 * n * n * np.dtype(dtype).itemsize / rate["bytes"]
