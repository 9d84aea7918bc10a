"""What a dense correction would cost, from rates measured on this machine."""

import functools
from time import perf_counter

import numpy as np
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
    """Rates of this machine for ``dtype``, measured once per process (about 0.1 s).

    Returns:
        dict: ``product``: operations per second of a matrix product; ``inverse``: of a Cholesky inverse (n³ operations);
        ``bytes``: bytes per second read or written by an in-place pass over a large array.
    """
    dtype, n = np.dtype(dtype), 768
    A = np.random.default_rng(0).random((n, n)).astype(dtype)
    wide = np.zeros(1 << 23, dtype)
    # The fastest of three: what else runs on the machine only adds to a time.
    product = min(_seconds(np.matmul, A, A) for _ in range(3))
    inverse = min(_seconds(cholesky_inverse, A @ A.T + n * np.eye(n, dtype=dtype)) for _ in range(3))
    passing = min(_seconds(np.add, wide, 1, wide) for _ in range(3))
    return {"product": 2 * n**3 / product, "inverse": n**3 / inverse, "bytes": 2 * wide.nbytes / passing}


def low_rank_seconds(n, rank, entries, dtype):
    """Expected seconds of a rank-``rank`` update of an [n, n] matrix from factors with ``entries`` entries.

    Two products of n²·rank operations each way (the factor's image, the update), the rank³ system, and one pass that
    reads and writes the matrix.
    """
    rate = rates(np.dtype(dtype))
    operations = 2 * n * entries + 2 * n * n * rank + 4 * n * rank**2 + rank**3
    return operations / rate["product"] + 2 * n * n * np.dtype(dtype).itemsize / rate["bytes"]


def refit_seconds(n, dtype):
    """Expected seconds of a fit by Cholesky: n³ operations, and three passes (Gram matrix, mirror, scale)."""
    rate = rates(np.dtype(dtype))
    return n**3 / rate["inverse"] + 6 * n * n * np.dtype(dtype).itemsize / rate["bytes"]
