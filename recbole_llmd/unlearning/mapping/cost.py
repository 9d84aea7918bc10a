"""What a dense correction would cost, from rates measured on this machine."""

import functools
from time import perf_counter

import numpy as np
import scipy.sparse as sp
from scipy.linalg import lapack


def cholesky_inverse(G):
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


def _seconds(function, *arguments):
    started = perf_counter()
    function(*arguments)
    return perf_counter() - started


@functools.cache
def rates(dtype):
    """Rates of this machine for ``dtype``, measured once per process (a fraction of a second).

    Returns:
        dict: operations per second of a ``product`` of dense matrices in blocks of few rows, of a ``sparse`` with a
        dense matrix, of a float64 linear system (``solve``) and of a Cholesky ``inverse`` (n³ of them); ``bytes`` per
        second of an in-place pass over a large array.
    """
    dtype, n = np.dtype(dtype), 768
    A = np.random.default_rng(0).random((n, n)).astype(dtype)
    S = sp.random(n, n, 0.02, format="csr", dtype=dtype, random_state=0)
    wide = np.zeros((1 << 25) // dtype.itemsize, dtype)
    # The fastest of three: what else runs on the machine only adds to a time.
    product = min(_seconds(np.matmul, A[:64], A) for _ in range(3))
    wider = A.astype(np.float64)
    solve = min(_seconds(np.linalg.solve, wider[:256, :256] + 256 * np.eye(256), wider[:256]) for _ in range(3))
    sparse = min(_seconds(S.dot, A) for _ in range(3))
    inverse = min(_seconds(cholesky_inverse, A @ A.T + n * np.eye(n, dtype=dtype)) for _ in range(3))
    passing = min(_seconds(np.add, wide, 1, wide) for _ in range(3))
    return {
        "product": 2 * 64 * n**2 / product,
        "sparse": 2 * n * S.nnz / sparse,
        "inverse": n**3 / inverse,
        "solve": _solve_operations(n, 256) / solve,
        "bytes": 2 * wide.nbytes / passing,
    }


def _solve_operations(n, rank):
    return 2 * n * rank**2 + 2 / 3 * rank**3


def low_rank_seconds(n, rank, entries, dtype):
    """Expected seconds of a rank-``rank`` update of an [n, n] matrix from factors with ``entries`` entries.

    The factors times the matrix (sparse), the rank x rank system with n right-hand sides (in float64), the product of
    n²·rank, and the passes that write it, scale the matrix, add, store and probe.
    """
    rate = rates(str(np.dtype(dtype)))
    return (
        2 * n * entries / rate["sparse"]
        + _solve_operations(n, rank) / rate["solve"]
        + 2 * n * n * rank / rate["product"]
        + 10 * n * n * np.dtype(dtype).itemsize / rate["bytes"]
    )


def refit_seconds(n, dtype):
    """Expected seconds of a fit by Cholesky: n³ operations; Gram matrix, mirror, scale, check and store are passes."""
    rate = rates(str(np.dtype(dtype)))
    return n**3 / rate["inverse"] + 10 * n * n * np.dtype(dtype).itemsize / rate["bytes"]
