"""Work on the blocks of a large array by as many threads as BLAS may use (OMP_NUM_THREADS, the processor affinity)."""

import functools
from concurrent.futures import ThreadPoolExecutor

from threadpoolctl import ThreadpoolController


@functools.cache
def _libraries():
    return ThreadpoolController()


def in_parallel(work, blocks):
    """Call ``work(block)`` for every block, BLAS within it single-threaded.

    NumPy and BLAS let other threads run meanwhile. Returns, or raises the first exception, when no call is running any
    more: also at an interrupt, which reaches the waiting main thread alone.
    """
    threads = max((library["num_threads"] for library in _libraries().select(user_api="blas").info()), default=1)
    remaining = iter(blocks)

    def worker(_):
        for block in remaining:
            work(block)

    with _libraries().limit(limits=1, user_api="blas"), ThreadPoolExecutor(threads) as pool:
        list(pool.map(worker, range(threads)))
